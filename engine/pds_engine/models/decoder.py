"""A dense decoder as functions of its weights: a layer is pieces around attention.

    one rank        before | attention | after
    shards          before | attention | project | all_reduce | feed | all_reduce

The pieces take all tensors as arguments, so that one compiled graph serves all layers. `Pieces`
runs them eagerly; runner.graphs has one that runs them compiled. Embedding and head are split by
token id, attention by heads, the MLP by columns (Shoeybi et al., "Megatron-LM", 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pds_kernels.paged_attention import Attend
from torch import Tensor

from pds_engine.layers.mlp import swiglu
from pds_engine.layers.norm import rms_norm
from pds_engine.layers.rope import rotate
from pds_engine.parallel.collectives import ALONE, Collectives, VocabShard
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec


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


@dataclass(frozen=True, slots=True)
class Shape:
    """What the pieces need to know apart from tensors. Heads are this rank's."""

    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    qk_norm: bool
    qkv_bias: bool


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
    """The token-wise parts of a layer, run eagerly. T tokens, padding included."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def before(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        return before(self.shape, x, rope, w.input_norm, w.qkv, w.qkv_bias, w.qk_norm)

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        return after(self.shape, x, attended, w.out, w.post_norm, w.gate_up, w.down)

    def project(self, attended: Tensor, w: LayerWeights) -> Tensor:
        return project(attended, w.out)

    def feed(self, x: Tensor, projected: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
        return feed(self.shape, x, projected, w.post_norm, w.gate_up, w.down)


def before(
    shape: Shape,
    x: Tensor,
    rope: Tensor,
    norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    qk_norm: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """From hidden states to rotated queries and keys, and values.

    x: [T, hidden]; rope: [T, D]. Returns q [T, H, D], k [T, K, D], v [T, K, D].
    """
    both = shape.heads + shape.kv_heads
    bias = qkv_bias if shape.qkv_bias else None
    projected = F.linear(rms_norm(x, norm, shape.norm_eps), qkv, bias)
    heads = projected.view(x.shape[0], -1, shape.head_dim)
    qk, v = heads[:, :both], heads[:, both:]
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
    x, fed = feed(shape, x, project(attended, out), norm, gate_up, down)
    return x + fed


def project(attended: Tensor, out: Tensor) -> Tensor:
    """Attention's output [T, H·D] → [T, hidden]: this shard's part of a sum."""
    return F.linear(attended, out)


def feed(
    shape: Shape, x: Tensor, projected: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual stream past attention, and the MLP's output: this shard's part of a sum.

    x, projected (summed over shards) and both results: [T, hidden].
    """
    x = x + projected
    return x, swiglu(rms_norm(x, norm, shape.norm_eps), gate_up, down)


class Decoder:
    """One rank's part of a model, ready to compute."""

    def __init__(
        self,
        spec: DecoderSpec,
        part: ModelPart,
        weights: Weights,
        rope: Tensor,
        dtype: torch.dtype,
        collectives: Collectives = ALONE,
    ) -> None:
        self.spec = spec
        self.part = part
        self.weights = weights
        self.rope = rope
        self.dtype = dtype
        self.collectives = collectives
        self.vocab = VocabShard(part.vocab, spec.vocab, collectives)
        self.pieces = Pieces(shape_of(spec, part))

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] → [T, hidden], on the first stage."""
        table = self.weights.embedding
        if table is None:
            raise ValueError("only the first stage embeds tokens")
        if self.collectives.size == 1:
            return F.embedding(tokens, table)
        rows = tokens - self.part.vocab.start
        foreign = (rows < 0) | (rows >= len(self.part.vocab))
        found = F.embedding(rows.masked_fill(foreign, 0), table)
        return self.collectives.all_reduce(found.masked_fill_(foreign.unsqueeze(1), 0))

    def forward(
        self, x: Tensor, positions: Tensor, attend: Attend, kv: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """This stage's layers. x: [T, hidden]; positions: [T]; kv: each layer's keys and values."""
        rope = self.rope[positions]
        for w, (keys, values) in zip(self.weights.layers, kv, strict=True):
            q, k, v = self.pieces.before(x, rope, w)
            x = self._after(x, attend(q, k, v, keys, values), w)
        return x

    def _after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        if self.collectives.size == 1:
            return self.pieces.after(x, attended, w)
        projected = self.collectives.all_reduce(self.pieces.project(attended, w))
        x, fed = self.pieces.feed(x, projected, w)
        return x + self.collectives.all_reduce(fed)

    def logits(self, x: Tensor) -> Tensor:
        """[R, hidden] → [R, V] in float32 (see VocabShard), on the last stage."""
        if self.weights.norm is None or self.weights.head is None:
            raise ValueError("only the last stage has logits")
        normed = rms_norm(x, self.weights.norm, self.spec.norm_eps)
        scores = F.linear(normed, self.weights.head).float()
        scores[:, len(self.part.vocab) :] = float("-inf")
        return scores
