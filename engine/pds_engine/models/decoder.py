"""A dense decoder as functions of its weights: a layer is two pieces around attention.

The pieces take all tensors as arguments, so that one compiled graph serves all layers. `Pieces`
runs them eagerly; runner.graphs has one that runs them compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_engine.layers.attention import AttentionPlan, attend
from pds_engine.layers.mlp import swiglu
from pds_engine.layers.norm import rms_norm
from pds_engine.layers.rope import rotate
from pds_engine.parallel.layout import Part
from pds_engine.spec import DecoderSpec


class LayerWeights(NamedTuple):
    """One layer's tensors, this rank's part of each. H query heads, K KV heads, C MLP columns."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(H + 2K)·D, hidden]
    qk_norm: Tensor  # [H + K, D]; [0] when the family has none
    out: Tensor  # [hidden, H·D]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2C, hidden]
    down: Tensor  # [hidden, C]


@dataclass(frozen=True, slots=True)
class Weights:
    """What one rank holds. `embedding` on the first stage; `norm` and `head` on the last."""

    layers: tuple[LayerWeights, ...]
    embedding: Tensor | None  # [vocab, hidden]
    norm: Tensor | None  # [hidden]
    head: Tensor | None  # [vocab, hidden]


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


class Pieces:
    """The token-wise parts of a layer, run eagerly. T tokens, padding included."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def before(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        return before(self.shape, x, rope, w.input_norm, w.qkv, w.qk_norm)

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        return after(self.shape, x, attended, w.out, w.post_norm, w.gate_up, w.down)


def before(
    shape: Shape, x: Tensor, rope: Tensor, norm: Tensor, qkv: Tensor, qk_norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From hidden states to rotated queries and keys, and values.

    x: [T, hidden]; rope: [T, D]. Returns q [T, H, D], k [T, K, D], v [T, K, D].
    """
    both = shape.heads + shape.kv_heads
    projected = F.linear(rms_norm(x, norm, shape.norm_eps), qkv)
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
    """From attention's output [T, H·D] to the next layer's input [T, hidden]."""
    x = x + F.linear(attended, out)
    return x + swiglu(rms_norm(x, norm, shape.norm_eps), gate_up, down)


class Decoder:
    """One rank's part of a model, ready to compute."""

    def __init__(
        self, spec: DecoderSpec, part: Part, weights: Weights, rope: Tensor, dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.part = part
        self.weights = weights
        self.rope = rope
        self.dtype = dtype
        self.pieces = Pieces(
            Shape(len(part.heads), len(part.kv_heads), spec.head_dim, spec.norm_eps, spec.qk_norm)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] → [T, hidden], on the first stage."""
        if self.weights.embedding is None:
            raise ValueError("only the first stage embeds tokens")
        return F.embedding(tokens, self.weights.embedding)

    def forward(
        self, x: Tensor, positions: Tensor, plan: AttentionPlan, kv: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """This stage's layers. x: [T, hidden]; positions: [T]; kv: each layer's keys and values."""
        rope = self.rope[positions]
        for w, (keys, values) in zip(self.weights.layers, kv, strict=True):
            q, k, v = self.pieces.before(x, rope, w)
            x = self.pieces.after(x, attend(q, k, v, keys, values, plan), w)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[R, hidden] → [R, vocab] in float32, on the last stage."""
        if self.weights.norm is None or self.weights.head is None:
            raise ValueError("only the last stage has logits")
        normed = rms_norm(x, self.weights.norm, self.spec.norm_eps)
        return F.linear(normed, self.weights.head).float()
