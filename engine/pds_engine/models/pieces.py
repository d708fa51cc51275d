"""The token-wise parts of a layer, by the kernels that serve them."""

from torch import Tensor

from pds_engine.layers import block, gqa
from pds_engine.layers.gqa import Into
from pds_engine.layers.linear import Matrix
from pds_engine.layers.mlp import gated
from pds_engine.layers.ops import Ops
from pds_engine.layers.shapes import HeadsShape, LatentShape, Shape
from pds_engine.models.weights import DenseWeights, GqaWeights, LayerWeights
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec, DenseSpec, LayerSpec, MlaSpec

MLA_NORM_EPS = 1e-6
"""Of the norms within latent attention, whatever rms_norm_eps says: DeepSeek's own code has it."""


def shape_of(spec: DecoderSpec, layer: LayerSpec, part: ModelPart) -> Shape:
    """What the pieces of this layer close over, on the rank with this part."""
    attention, feed = layer.attention, layer.feed
    heads: HeadsShape | LatentShape
    if isinstance(attention, MlaSpec):
        out_bias = False
        heads = LatentShape(
            heads=len(part.heads),
            q_rank=attention.q_rank,
            kv_rank=attention.kv_rank,
            nope_dim=attention.nope_dim,
            rope_dim=attention.rope_dim,
            value_dim=attention.value_dim,
            norm_eps=MLA_NORM_EPS,
        )
    else:
        out_bias = attention.out_bias
        together = attention.qk_norm == "whole"
        heads = HeadsShape(
            heads=len(part.heads),
            kv_heads=len(part.kv_heads),
            head_dim=attention.head_dim,
            rotated=attention.rope.dims,
            qk_norm=attention.qk_norm,
            qkv_bias=attention.qkv_bias,
            norm_eps=spec.norm_eps,
            shards=part.tp if together else 1,
            kv_replicas=max(1, part.tp // attention.kv_heads) if together else 1,
        )
    return Shape(
        attention=heads,
        norms=spec.norms,
        norm_eps=spec.norm_eps,
        activation=feed.activation,
        columns=len(part.columns(feed.columns)) if isinstance(feed, DenseSpec) else 0,
        out_bias=out_bias,
    )


class Pieces:
    """The pieces of the layers of one shape; layers.block says what they are."""

    def __init__(self, shape: Shape, ops: Ops) -> None:
        self.shape = shape
        self.ops = ops

    # ---- of a rank by itself -------------------------------------------------------------------

    def before(
        self, x: Tensor, rope: Tensor, w: LayerWeights, into: Into | None
    ) -> tuple[Tensor | None, ...]:
        """`into`: see `heads`."""
        return self.heads(self.normed(x, w.norms.attention_in), rope, w, ALONE, into)

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights, feed: DenseWeights) -> Tensor:
        weights = (*_joined(w), w.norms.feed_out, *feed)
        return block.after(self.shape, self.ops, x, attended, *weights)

    def between(self, x: Tensor, attended: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
        return block.between(self.shape, self.ops, x, attended, *_joined(w))

    # ---- of one of several ranks ---------------------------------------------------------------

    def heads(
        self, x: Tensor, rope: Tensor, w: LayerWeights, ranks: Collectives, into: Into | None
    ) -> tuple[Tensor | None, ...]:
        """What attention takes before its pages.

        `ranks`: those of its attention group, asked where all heads are normalised together.
        `into`: what rotates and writes keys and values; None: attention will write them.
        """
        attention = self.shape.attention
        if isinstance(w.attention, GqaWeights) and isinstance(attention, HeadsShape):
            if into is not None:
                return gqa.written(attention, x, rope, w.attention.inputs, into)
            qkv, bias, norm = w.attention.inputs
            return gqa.heads(attention, x, rope, qkv, bias, norm, ranks.all_reduce)
        return block.heads(self.shape, x, rope, *w.attention.inputs)

    def project(self, attended: Tensor, w: LayerWeights) -> Tensor:
        return block.project(self.shape, attended, w.attention.out, w.attention.out_bias)

    def join(
        self, x: Tensor, y: Tensor, out_norm: Tensor, in_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        return block.join(self.shape, self.ops, x, y, out_norm, in_norm)

    def feed(self, x: Tensor, w: DenseWeights) -> Tensor:
        return gated(self.ops.activate, x, *w)

    # ---- of both -------------------------------------------------------------------------------

    def normed(self, x: Tensor, norm: Tensor) -> Tensor:
        return block.normed(self.shape, self.ops, x, norm)

    def added(self, x: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return block.added(self.shape, self.ops, x, y, norm)


def _joined(w: LayerWeights) -> tuple[Matrix, Tensor, Tensor, Tensor]:
    attention = w.attention
    return attention.out, attention.out_bias, w.norms.attention_out, w.norms.feed_in
