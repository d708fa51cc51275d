"""Grouped-query attention's token-wise part: from hidden states to queries, keys and values."""

from collections.abc import Callable

import torch
from pds_kernels.rms_norm import rms_norm
from pds_kernels.rope import rotate
from torch import Tensor

from pds_engine.layers.linear import Matrix, linear
from pds_engine.layers.shapes import HeadsShape

Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over the ranks that share the heads."""

Into = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(projection, rope, norms of heads) → rotated queries [T, H, D]; keys and values are in their
pages then. It is pds_kernels.rope.RotateAndWrite with a layer's pages and a step's places."""


def _own(x: Tensor) -> Tensor:
    return x


def heads(
    shape: HeadsShape,
    x: Tensor,
    rope: Tensor,
    qkv: Matrix,
    qkv_bias: Tensor,
    qk_norm: Tensor,
    total: Sum = _own,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values: q [T, H, D], k [T, K, D], v [T, K, D].

    x: [T, hidden]; rope: [T, rotated dimensions]. `total` is called only where all heads are
    normalised together.
    """
    both = shape.heads + shape.kv_heads
    by_head = _project(shape, x, qkv, qkv_bias).view(
        x.shape[0], both + shape.kv_heads, shape.head_dim
    )
    qk, v = by_head[:, :both], by_head[:, both:]
    if shape.qk_norm == "head":
        qk = rms_norm(qk, qk_norm, shape.norm_eps)
    elif shape.qk_norm == "whole":
        qk = _normed_together(shape, qk, qk_norm, total)
    qk = rotate(qk, rope)
    return qk[:, : shape.heads], qk[:, shape.heads :], v


def written(
    shape: HeadsShape,
    x: Tensor,
    rope: Tensor,
    weights: tuple[Matrix, Tensor, Tensor],
    into: Into,
) -> tuple[Tensor, None, None]:
    """As `heads`, but keys and values are in their pages, and None stands for them.

    weights: `inputs` of the layer's attention. Heads are not normalised together.
    """
    qkv, qkv_bias, qk_norm = weights
    norm = qk_norm if shape.qk_norm == "head" else None
    return into(_project(shape, x, qkv, qkv_bias), rope, norm), None, None


def _project(shape: HeadsShape, x: Tensor, qkv: Matrix, qkv_bias: Tensor) -> Tensor:
    """[T, (H + 2K)·D]: queries, keys and values."""
    return linear(x, qkv, qkv_bias if shape.qkv_bias else None)


def _normed_together(shape: HeadsShape, qk: Tensor, weight: Tensor, total: Sum) -> Tensor:
    """Queries by the mean square of all ranks' queries, keys by that of all ranks' keys."""
    wide = qk.float()
    squares = wide.square().sum(-1)
    sums = torch.stack(
        (
            squares[:, : shape.heads].sum(-1),
            squares[:, shape.heads :].sum(-1) / shape.kv_replicas,
        ),
        dim=1,
    )
    counts = (
        shape.heads * shape.shards * shape.head_dim,
        shape.kv_heads * shape.shards // shape.kv_replicas * shape.head_dim,
    )
    means = total(sums) / torch.tensor(counts, dtype=torch.float32, device=qk.device)
    scale = torch.rsqrt(means + shape.norm_eps)
    by_head = torch.cat(
        (
            scale[:, :1].expand(-1, shape.heads),
            scale[:, 1:].expand(-1, shape.kv_heads),
        ),
        dim=1,
    ).unsqueeze(-1)
    return ((wide * by_head).to(weight.dtype) * weight).to(qk.dtype)
