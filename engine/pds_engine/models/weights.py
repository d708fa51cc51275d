"""The tensors of a rank's part of a model, in the form in which layers compute with them.

What a model has not is a tensor of no elements. H query heads and K KV heads are this rank's, D is
the size of a head. A `Matrix` may be packed, and it or a `Stack` in FP8 (models/matrices.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

from pds_kernels.grouped_gemm import Feed, Stack
from torch import Tensor

from pds_engine.layers.linear import Matrix, PackedMatrix

Embedding = Tensor | PackedMatrix
"""Packed where it is the head, too; else in the dtype in which it is stored."""


class NormWeights(NamedTuple):
    """[hidden] each."""

    attention_in: Tensor
    attention_out: Tensor
    feed_in: Tensor
    feed_out: Tensor


class GqaWeights(NamedTuple):
    """Of grouped-query attention."""

    qkv: Matrix  # [(H + 2K)·D, hidden]
    qkv_bias: Tensor  # [(H + 2K)·D]
    qk_norm: Tensor  # [H + K, D]
    out: Matrix  # [hidden, H·D]
    out_bias: Tensor  # [hidden]; zeros on all ranks of an attention group but the first
    sinks: Tensor  # [H]

    @property
    def inputs(self) -> tuple[Matrix, Tensor, Tensor]:
        """What makes queries, keys and values of a token."""
        return self.qkv, self.qkv_bias, self.qk_norm

    @property
    def kernel(self) -> tuple[Tensor | None, ...]:
        """What the attention kernel takes after the pages."""
        return (self.sinks if self.sinks.numel() else None,)


class MlaWeights(NamedTuple):
    """Of multi-head latent attention. R: kv_rank; N, P, V: dimensions not rotated, rotated, of a
    value."""

    q_a: Matrix  # [q_rank, hidden]; none where queries are projected at once
    q_a_norm: Tensor  # [q_rank]
    q_b: Matrix  # [H·(N + P), q_rank or hidden]
    kv_a: Matrix  # [R + P, hidden]
    kv_a_norm: Tensor  # [R]
    uk: Tensor  # [H, N, R], or packed: from the latent to keys
    uv: Tensor  # [H, V, R], or packed: from the latent to values
    out: Matrix  # [hidden, H·V]
    out_bias: Tensor  # [hidden]

    @property
    def inputs(self) -> tuple[Matrix, Tensor, Matrix, Matrix, Tensor]:
        """What makes the queries and the latent of a token."""
        return self.q_a, self.q_a_norm, self.q_b, self.kv_a, self.kv_a_norm

    @property
    def kernel(self) -> tuple[Tensor | None, ...]:
        """What the attention kernel takes after the pages."""
        return self.uk, self.uv


class DenseWeights(NamedTuple):
    """Of a gated block, this rank's C columns of it."""

    gate_up: Matrix  # [2C, hidden], gate's rows first
    down: Matrix  # [hidden, C]


class ExpertWeights(NamedTuple):
    """Of a mixture of E experts. This rank has e of them: all, C columns of each; with expert
    parallelism a block of whole ones."""

    router: Matrix  # [E, hidden]
    router_bias: Tensor  # [E]
    correction: Tensor  # [E], float32
    gate_up: Stack  # [e, 2C, hidden], gate's rows first; or packed, as `reading` has it
    gate_up_bias: Tensor  # [e, 2C]
    down: Stack  # [e, hidden, C]; or packed
    down_bias: Tensor  # [e, hidden]; zeros on all but one of the ranks that share an expert
    shared: DenseWeights  # its columns of the shared block; with expert parallelism all of them
    shared_gate: Matrix  # [1, hidden]; no elements: there is none
    reading: Feed | None = None  # what multiplies by experts that are packed, or in FP8

    @property
    def own_gate(self) -> Matrix | None:
        """`shared_gate`, where there is one."""
        found = self.shared_gate
        return None if isinstance(found, Tensor) and not found.numel() else found


class LayerWeights(NamedTuple):
    """One layer's."""

    norms: NormWeights
    attention: GqaWeights | MlaWeights
    feed: DenseWeights | ExpertWeights


@dataclass(frozen=True, slots=True)
class Weights:
    """What one rank holds. `embedding` on the first stage; `norm` and `head` on the last."""

    layers: tuple[LayerWeights, ...]
    embedding: Embedding | None  # [V, hidden], V rows of the vocabulary, zeros past its end
    norm: Tensor | None  # [hidden]
    head: Matrix | None  # [V, hidden]


def tensors(weights: Any) -> Iterator[Tensor]:
    """Every tensor in what weights consist of, in order: in tuples, lists and dataclasses."""
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, tuple | list):
        for one in weights:
            yield from tensors(one)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from tensors(getattr(weights, field.name))
