"""A decoder layer's token-wise parts, as functions of tensors alone.

A rank by itself needs `before` and `after`; where the feed-forward block is a mixture of
experts, `between` and `added` stand for `after`. Of several ranks each computes `heads`, the
projection and the block with its share of the weights, and `join` for its share of the tokens
(models.decoder). `ops` says how what stands between the matrix products is computed.
"""

from typing import Any

from torch import Tensor

from pds_engine.layers import gqa, latent
from pds_engine.layers.linear import Matrix, linear
from pds_engine.layers.mlp import gated
from pds_engine.layers.ops import Ops
from pds_engine.layers.shapes import HeadsShape, Shape


def before(
    shape: Shape, ops: Ops, x: Tensor, rope: Tensor, norm: Tensor, *weights: Any
) -> tuple[Tensor, ...]:
    """From hidden states to what attention takes; see `heads`."""
    return heads(shape, normed(shape, ops, x, norm), rope, *weights)


def heads(shape: Shape, x: Tensor, rope: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    """From hidden states as attention reads them to queries, keys and values.

    x: [T, hidden]; rope: [T, rotated dimensions]; weights: `inputs` of the layer's attention.
    Returns what gqa.heads or latent.heads does.
    """
    if isinstance(shape.attention, HeadsShape):
        qkv, qkv_bias, qk_norm = weights
        return gqa.heads(shape.attention, x, rope, qkv, qkv_bias, qk_norm)
    q_a, q_a_norm, q_b, kv_a, kv_a_norm = weights
    return latent.heads(shape.attention, x, rope, q_a, q_a_norm, q_b, kv_a, kv_a_norm)


def normed(shape: Shape, ops: Ops, x: Tensor, norm: Tensor) -> Tensor:
    """What attention or the feed-forward block reads of the residual stream."""
    return x if shape.norms == "post" else ops.norm(x, norm)[1]


def added(shape: Shape, ops: Ops, x: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    """The residual stream with `y`, which attention or the feed-forward block gave."""
    return x + (y if shape.norms == "pre" else ops.norm(y, norm)[1])


def project(shape: Shape, attended: Tensor, out: Matrix, bias: Tensor) -> Tensor:
    """Attention's output [T, H·D] to [T, hidden]: this shard's part of a sum."""
    return linear(attended, out, bias if shape.out_bias else None)


def join(
    shape: Shape, ops: Ops, x: Tensor, y: Tensor, out_norm: Tensor, in_norm: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual stream once `y` is added, and what the next part of the layer reads of it.

    All of them: [T, hidden]. `y` is a sum over ranks already.
    """
    if shape.norms == "post":
        x = added(shape, ops, x, y, out_norm)
        return x, x
    return ops.norm(x, in_norm, y if shape.norms == "pre" else ops.norm(y, out_norm)[1])


def between(
    shape: Shape, ops: Ops, x: Tensor, attended: Tensor, *weights: Any
) -> tuple[Tensor, Tensor]:
    """From attention's output to what the feed-forward block reads, on one rank; see `join`.

    weights: of the projection and its bias, and the norms behind it and before the block.
    """
    out, bias, out_norm, in_norm = weights
    return join(shape, ops, x, project(shape, attended, out, bias), out_norm, in_norm)


def after(shape: Shape, ops: Ops, x: Tensor, attended: Tensor, *weights: Any) -> Tensor:
    """From attention's output to the next layer's input [T, hidden], on one rank.

    weights: those of `between`, the norm behind the block, and the block's two.
    """
    *joining, feed_out, gate_up, down = weights
    x, read = between(shape, ops, x, attended, *joining)
    return added(shape, ops, x, gated(ops.activate, read, gate_up, down), feed_out)
