"""A dense decoder as functions of its weights: a layer is pieces around attention.

    one rank        before | attention | after
    several         gather | heads | attention | project | reduce-scatter | join
                    gather | feed | reduce-scatter | join

`Pieces` runs them eagerly; runner.graphs has one that runs them compiled. Embedding and head are
split by token id and attention by heads, over the ranks of an attention group; the MLP by columns,
over all ranks of the stage (Shoeybi et al., "Megatron-LM", 2019). Between them a rank holds a part
of the tokens (parallel.parts): what is token-wise is computed once, and the MLP sees the tokens of
all dp ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pds_kernels.paged_attention import Attend
from torch import Tensor

from pds_engine.layers import block
from pds_engine.layers.block import Shape
from pds_engine.layers.mlp import swiglu
from pds_engine.layers.norm import rms_norm
from pds_engine.parallel.collectives import LONE, StageRanks, VocabShard
from pds_engine.parallel.layout import ModelPart
from pds_engine.parallel.parts import Parts
from pds_engine.spec import DecoderSpec

Kv = Sequence[tuple[Tensor, Tensor]]
"""Each layer's keys and values: [pages, kv_heads, page_size, head_dim] views of one pool."""


class LayerWeights(NamedTuple):
    """One layer's tensors, this rank's part of each. H query heads, K KV heads, C MLP columns."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(H + 2K)·D, hidden]
    qkv_bias: Tensor  # [(H + 2K)·D]; [0] when the family has none
    qk_norm: Tensor  # [H + K, D]; [0] when the family has none
    out: Tensor  # [hidden, H·D]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2C, hidden]
    down: Tensor  # [hidden, C]


@dataclass(frozen=True, slots=True)
class Weights:
    """What one rank holds. `embedding` on the first stage; `norm` and `head` on the last."""

    layers: tuple[LayerWeights, ...]
    embedding: Tensor | None  # [V, hidden], V rows of the vocabulary, zeros past its end
    norm: Tensor | None  # [hidden]
    head: Tensor | None  # [V, hidden]


class KvLayers(Protocol):
    """The pages of one rank: kv.pool.KvPool, or a test's stand-in."""

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of this rank's layer `index`: [pages, kv_heads, page_size, D] views."""


def shape_of(spec: DecoderSpec, part: ModelPart) -> Shape:
    """What the pieces of the rank with this part close over."""
    return Shape(
        heads=len(part.heads),
        kv_heads=len(part.kv_heads),
        head_dim=spec.head_dim,
        norm_eps=spec.norm_eps,
        qk_norm=spec.qk_norm,
        qkv_bias=spec.qkv_bias,
    )


class Pieces:
    """The token-wise parts of a layer, run eagerly; layers.block says what they are."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def before(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        return block.before(self.shape, x, rope, w.input_norm, w.qkv, w.qkv_bias, w.qk_norm)

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        return block.after(self.shape, x, attended, w.out, w.post_norm, w.gate_up, w.down)

    def heads(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        return block.heads(self.shape, x, rope, w.qkv, w.qkv_bias, w.qk_norm)

    def join(self, x: Tensor, y: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        return block.join(x, y, norm, self.shape.norm_eps)

    def feed(self, x: Tensor, w: LayerWeights) -> Tensor:
        return swiglu(x, w.gate_up, w.down)


class Decoder:
    """One rank's part of a model, ready to compute."""

    def __init__(
        self,
        spec: DecoderSpec,
        part: ModelPart,
        weights: Weights,
        rope: Tensor,
        dtype: torch.dtype,
        ranks: StageRanks = LONE,
    ) -> None:
        self.spec = spec
        self.part = part
        self.weights = weights
        self.rope = rope
        self.dtype = dtype
        self.ranks = ranks
        self.vocab = VocabShard(part.vocab, spec.vocab, ranks.attention)
        self.pieces = Pieces(shape_of(spec, part))

    def embed(self, tokens: Tensor, parts: Parts) -> Tensor:
        """A batch's tokens [T] → this rank's part of their hidden states, on the first stage."""
        table = self.weights.embedding
        if table is None:
            raise ValueError("only the first stage embeds tokens")
        if self.ranks.attention.size == 1:
            return F.embedding(tokens, table)
        rows = tokens - self.part.vocab.start
        foreign = (rows < 0) | (rows >= len(self.part.vocab))
        found = F.embedding(rows.masked_fill(foreign, 0), table)
        found.masked_fill_(foreign.unsqueeze(1), 0)
        return self.ranks.attention.reduce_scatter(found, parts.batch)

    def forward(
        self, x: Tensor, positions: Tensor, attend: Attend | None, kv: Kv, parts: Parts
    ) -> Tensor:
        """This stage's layers, for this rank's part of a batch.

        x, and the result: [parts.batch[rank], hidden]; positions: [T], of the whole batch; attend:
        None for a batch without requests, which then has nothing but its share of the MLP; kv: each
        layer's keys and values.
        """
        rope = self.rope[positions]
        if self.ranks.stage.size > 1:
            return self._shared(x, rope, attend, kv, parts)
        if attend is None:
            return x  # nobody reads it
        for w, (keys, values) in zip(self.weights.layers, kv, strict=True):
            q, k, v = self.pieces.before(x, rope, w)
            x = self.pieces.after(x, attend(q, k, v, keys, values), w)
        return x

    def _shared(
        self, x: Tensor, rope: Tensor, attend: Attend | None, kv: Kv, parts: Parts
    ) -> Tensor:
        """The layers of a stage of several ranks; `normed` is `x` as what comes next reads it."""
        attention, stage = self.ranks
        layers, pieces = self.weights.layers, self.pieces
        normed = rms_norm(x, layers[0].input_norm, self.spec.norm_eps)
        for at, (w, (keys, values)) in enumerate(zip(layers, kv, strict=True)):
            if attend is None:
                normed = rms_norm(x, w.post_norm, self.spec.norm_eps)
            else:
                q, k, v = pieces.heads(attention.gather_parts(normed, parts.batch), rope, w)
                projected = F.linear(attend(q, k, v, keys, values), w.out)
                projected = attention.reduce_scatter(projected, parts.batch)
                x, normed = pieces.join(x, projected, w.post_norm)
            fed = pieces.feed(stage.gather_parts(normed, parts.stage), w)
            fed = stage.reduce_scatter(fed, parts.stage)
            if w is layers[-1]:
                x = x + fed
            else:
                x, normed = pieces.join(x, fed, layers[at + 1].input_norm)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[R, hidden] → [R, V] in float32 (see VocabShard), on the last stage."""
        if self.weights.norm is None or self.weights.head is None:
            raise ValueError("only the last stage has logits")
        normed = rms_norm(x, self.weights.norm, self.spec.norm_eps)
        scores = F.linear(normed, self.weights.head).float()
        scores[:, len(self.part.vocab) :] = float("-inf")
        return scores
