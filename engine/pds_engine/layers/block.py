"""A decoder layer's token-wise parts, as functions of tensors alone.

All tensors are arguments, so that one compiled graph of each (runner.graphs) serves all layers.
`before` and `after` are all that a rank by itself needs. Of several ranks each computes `heads` and
the MLP with its share of the weights, and `join` for its share of the tokens (models.decoder).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pds_engine.layers.mlp import swiglu
from pds_engine.layers.norm import rms_norm
from pds_engine.layers.rope import rotate


@dataclass(frozen=True, slots=True)
class Shape:
    """What the pieces need to know apart from tensors. Heads are this rank's."""

    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    qk_norm: bool
    qkv_bias: bool


def before(
    shape: Shape,
    x: Tensor,
    rope: Tensor,
    norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    qk_norm: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """From hidden states to rotated queries and keys, and values; see `heads`."""
    return heads(shape, rms_norm(x, norm, shape.norm_eps), rope, qkv, qkv_bias, qk_norm)


def heads(
    shape: Shape, x: Tensor, rope: Tensor, qkv: Tensor, qkv_bias: Tensor, qk_norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From normalised hidden states to rotated queries and keys, and values.

    x: [T, hidden]; rope: [T, D]. Returns q [T, H, D], k [T, K, D], v [T, K, D].
    """
    both = shape.heads + shape.kv_heads
    projected = F.linear(x, qkv, qkv_bias if shape.qkv_bias else None)
    by_head = projected.view(x.shape[0], both + shape.kv_heads, shape.head_dim)
    qk, v = by_head[:, :both], by_head[:, both:]
    if shape.qk_norm:
        qk = rms_norm(qk, qk_norm, shape.norm_eps)
    qk = rotate(qk, rope)
    return qk[:, : shape.heads], qk[:, shape.heads :], v


def after(
    shape: Shape,
    x: Tensor,
    attended: Tensor,
    out: Tensor,
    norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """From attention's output [T, H·D] to the next layer's input [T, hidden], on one rank."""
    x, normed = join(x, F.linear(attended, out), norm, shape.norm_eps)
    return x + swiglu(normed, gate_up, down)


def join(x: Tensor, y: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream once `y` is added, and what the next part of the layer reads of it.

    All of them: [T, hidden]. `y` is a sum over ranks already.
    """
    x = x + y
    return x, rms_norm(x, norm, eps)
