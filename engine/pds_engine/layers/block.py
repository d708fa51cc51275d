"""A decoder layer's token-wise parts, as functions of tensors alone.

All tensors are arguments, so that one compiled graph of each (runner.graphs) serves all layers of a
shape. A rank by itself needs `before` and `after`; where the feed-forward block is a mixture of
experts, `between` and `added` stand for `after`. Of several ranks each computes `heads`, the
projection and the block with its share of the weights, and `join` for its share of the tokens
(models.decoder).
"""

import torch.nn.functional as F
from torch import Tensor

from pds_engine.layers import gqa, latent
from pds_engine.layers.mlp import gated
from pds_engine.layers.norm import rms_norm
from pds_engine.layers.shapes import HeadsShape, Shape


def before(
    shape: Shape, x: Tensor, rope: Tensor, norm: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    """From hidden states to what attention takes; see `heads`."""
    return heads(shape, normed(shape, x, norm), rope, *weights)


def heads(shape: Shape, x: Tensor, rope: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """From hidden states as attention reads them to queries, keys and values.

    x: [T, hidden]; rope: [T, rotated dimensions]; weights: `inputs` of the layer's attention.
    Returns what gqa.heads or latent.heads does.
    """
    if isinstance(shape.attention, HeadsShape):
        qkv, qkv_bias, qk_norm = weights
        return gqa.heads(shape.attention, x, rope, qkv, qkv_bias, qk_norm)
    q_a, q_a_norm, q_b, kv_a, kv_a_norm = weights
    return latent.heads(shape.attention, x, rope, q_a, q_a_norm, q_b, kv_a, kv_a_norm)


def normed(shape: Shape, x: Tensor, norm: Tensor) -> Tensor:
    """What attention or the feed-forward block reads of the residual stream."""
    return x if shape.norms == "post" else rms_norm(x, norm, shape.norm_eps)


def added(shape: Shape, x: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    """The residual stream with `y`, which attention or the feed-forward block gave."""
    return x + (y if shape.norms == "pre" else rms_norm(y, norm, shape.norm_eps))


def project(shape: Shape, attended: Tensor, out: Tensor, bias: Tensor) -> Tensor:
    """Attention's output [T, H·D] to [T, hidden]: this shard's part of a sum."""
    return F.linear(attended, out, bias if shape.out_bias else None)


def join(
    shape: Shape, x: Tensor, y: Tensor, out_norm: Tensor, in_norm: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual stream once `y` is added, and what the next part of the layer reads of it.

    All of them: [T, hidden]. `y` is a sum over ranks already.
    """
    x = added(shape, x, y, out_norm)
    return x, normed(shape, x, in_norm)


def between(
    shape: Shape,
    x: Tensor,
    attended: Tensor,
    out: Tensor,
    bias: Tensor,
    out_norm: Tensor,
    in_norm: Tensor,
) -> tuple[Tensor, Tensor]:
    """From attention's output to what the feed-forward block reads, on one rank; see `join`."""
    return join(shape, x, project(shape, attended, out, bias), out_norm, in_norm)


def after(
    shape: Shape,
    x: Tensor,
    attended: Tensor,
    out: Tensor,
    bias: Tensor,
    attention_out: Tensor,
    feed_in: Tensor,
    feed_out: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """From attention's output to the next layer's input [T, hidden], on one rank."""
    x, read = between(shape, x, attended, out, bias, attention_out, feed_in)
    return added(shape, x, gated(read, gate_up, down, shape.activation), feed_out)
