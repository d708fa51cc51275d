"""All layers of a rank by itself on a CPU as one program: one call a step, and no tensor is made.

It has the operations of models.decoder in the same order, on memory that stays where it is. What a
part of a layer adds to the residual stream is summed up by the norm that follows it.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from pds_kernels import (
    cpu,
    grouped_gemm,
    linear,
    mla,
    moe_gate,
    paged_attention,
    rms_norm,
    rope,
)
from pds_kernels.plan import AttentionPlan
from torch import Tensor

from pds_engine.layers.linear import Matrix, PackedMatrix
from pds_engine.models.decoder import Decoder, Kv
from pds_engine.models.mixture import kernel_weights
from pds_engine.models.pieces import MLA_NORM_EPS, Pieces
from pds_engine.models.weights import DenseWeights, ExpertWeights, GqaWeights, MlaWeights
from pds_engine.runner.attention import Attention, Kind
from pds_engine.spec import ExpertsSpec, GqaSpec, MlaSpec

K = TypeVar("K")


class StageProgram:
    """The layers of a stage, for steps of up to `tokens` tokens."""

    def __init__(self, ops: Sequence[cpu.Op], x: Tensor, *, copies: bool) -> None:
        self._program = cpu.Program(ops)
        self._x = x
        self._copies = copies

    def run(self, x: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """x, and the result: [T, hidden]; positions: [T] int64. The last stage's result holds until
        the next call."""
        self._x[: len(x)] = x
        step = cpu.Step.of(len(x), plan)
        step.positions = positions.data_ptr()
        self._program.run(step)
        found = self._x[: len(x)]
        return found.clone() if self._copies else found


def program(decoder: Decoder, attention: Attention, kv: Kv, tokens: int) -> StageProgram | None:
    """None: other ranks take part in a layer, or something in it has no kernel for CPUs."""
    if decoder.ranks.stage.size > 1:
        return None
    layers = _Layers(decoder, tokens)
    try:
        ops = [_planning(kind) for kind in attention.unlike]
        for at, kind in enumerate(attention.kinds):
            ops += layers.attention(at, kind, kv[at])
            ops += layers.feed(at)
        ops += layers.summed()
    except _Unserved:
        return None
    return StageProgram(ops, layers.x, copies=not decoder.part.samples)


class _Unserved(Exception):
    """An operation has no kernel for CPUs."""


def _of(kind: type[K], kernel: object) -> K:
    """`kernel`, which is to be of this kind.

    Raises:
        _Unserved: it is not.
    """
    if not isinstance(kernel, kind):
        raise _Unserved
    return kernel


def _planning(kind: Kind) -> cpu.Op:
    """What comes first in each step."""
    if isinstance(kind.attend, mla.OnCpu):
        return kind.attend.planning()
    return _of(paged_attention.OnCpu, kind.attend).planning()


class _Layers:
    """Makes the operations of layers, one layer after the other."""

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        self._decoder = decoder
        self._tokens = tokens
        self._memory: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._rooms: dict[ExpertsSpec, grouped_gemm.Room] = {}
        hidden = decoder.spec.hidden
        self.x, self._normed, self._y = (self._room(name, hidden) for name in ("x", "normed", "y"))
        self._pending = False
        """`y` is to be added to `x`."""

    def attention(self, at: int, kind: Kind, pages: tuple[Tensor, ...]) -> list[cpu.Op]:
        """Layer `at`, from the residual stream to `y`."""
        w, pieces = self._decoder.weights.layers[at], self._decoder.pieces[at]
        ops, read = self._read(pieces, w.norms.attention_in)
        if isinstance(w.attention, MlaWeights):
            made, attended = self._latent(at, read, w.attention, kind, pages)
        else:
            made, attended = self._grouped(at, read, w.attention, kind, pages)
        out = self._linear(attended, w.attention.out, w.attention.out_bias, self._y)
        return [*ops, *made, out, *self._given(pieces, w.norms.attention_out)]

    def feed(self, at: int) -> list[cpu.Op]:
        """The feed-forward block of layer `at`, from the residual stream to `y`."""
        w, pieces = self._decoder.weights.layers[at], self._decoder.pieces[at]
        ops, read = self._read(pieces, w.norms.feed_in)
        if isinstance(w.feed, DenseWeights):
            ops += self._dense(pieces.shape.columns, read, w.feed, self._y)
        else:
            ops += self._mixture(at, read, w.feed)
        return [*ops, *self._given(pieces, w.norms.feed_out)]

    def summed(self) -> list[cpu.Op]:
        """The residual stream as the next stage or the head reads it."""
        return [self._norm(self._decoder.pieces[-1], None)]

    def _read(self, pieces: Pieces, norm: Tensor) -> tuple[list[cpu.Op], Tensor]:
        """What attention or the feed-forward block reads; `y` is added to the stream on the way."""
        if pieces.shape.norms != "post":
            return [self._norm(pieces, norm)], self._normed
        return [self._norm(pieces, None)] if self._pending else [], self.x

    def _norm(self, pieces: Pieces, weight: Tensor | None) -> cpu.Op:
        residual, self._pending = self._y if self._pending else None, False
        normed = None if weight is None else self._normed
        norm = _of(rms_norm.OnCpu, pieces.ops.norm)
        return norm.op(self.x, weight, residual, self.x, normed)

    def _given(self, pieces: Pieces, norm: Tensor) -> list[cpu.Op]:
        """`y` as it is added to the stream."""
        self._pending = True
        if pieces.shape.norms == "pre":
            return []
        return [_of(rms_norm.OnCpu, pieces.ops.norm).op(self._y, norm, None, self._y, self._y)]

    def _grouped(
        self, at: int, x: Tensor, w: GqaWeights, kind: Kind, pages: tuple[Tensor, ...]
    ) -> tuple[list[cpu.Op], Tensor]:
        """Grouped-query attention: its operations, and where its result lies."""
        spec, part, (keys, values) = self._decoder.layers[at].attention, self._decoder.part, pages
        if not isinstance(spec, GqaSpec):
            raise TypeError("the weights of grouped-query attention belong to a GqaSpec")
        heads, kv_heads, dim = len(part.heads), len(part.kv_heads), spec.head_dim
        qkv = self._room("qkv", (heads + 2 * kv_heads) * dim)
        queries, attended = (self._room(name, heads * dim) for name in ("queries", "attended"))
        ops = [self._linear(x, w.qkv, w.qkv_bias, qkv)]
        norm = w.qk_norm if spec.qk_norm == "head" else None
        sinks = w.sinks if spec.sinks else None
        if spec.qk_norm == "whole":
            ops += self._whole_norms(qkv, w.qk_norm, heads * dim, kv_heads * dim)
        table, by_head = self._decoder.ropes[spec.rope], queries.view(-1, heads, dim)
        attend = _of(paged_attention.OnCpu, kind.attend)
        rotate = _of(rope.OnCpu, kind.rotate or _rotation(attend.geometry, spec.rope.dims))
        ops.append(rotate.op(qkv, table, norm, (keys, values), by_head, table=True))
        ops.append(attend.attending(by_head, keys, values, sinks, attended))
        return ops, attended

    def _whole_norms(self, qkv: Tensor, weight: Tensor, queries: int, keys: int) -> list[cpu.Op]:
        """Of all queries together and of all keys together (OLMo 2), in place."""
        heads, eps = queries // weight.shape[1], self._decoder.spec.norm_eps
        both = qkv[:, :queries], qkv[:, queries : queries + keys]
        return [
            self._own_norm(part, own.reshape(-1), eps)
            for part, own in zip(both, (weight[:heads], weight[heads:]), strict=True)
        ]

    def _own_norm(self, x: Tensor, weight: Tensor, eps: float) -> cpu.Op:
        """Of part of an attention's numbers, in place."""
        geometry = rms_norm.Geometry(x.shape[1], x.dtype, weight.dtype, eps, x.device)
        norm = _of(rms_norm.OnCpu, rms_norm.choose(geometry).make(geometry))
        return norm.op(x, weight, None, x, x)

    def _latent(
        self, at: int, x: Tensor, w: MlaWeights, kind: Kind, pages: tuple[Tensor, ...]
    ) -> tuple[list[cpu.Op], Tensor]:
        """Multi-head latent attention: its operations, and where its result lies."""
        spec, heads = self._decoder.layers[at].attention, len(self._decoder.part.heads)
        if not isinstance(spec, MlaSpec):
            raise TypeError("the weights of latent attention belong to an MlaSpec")
        attend, table = _of(mla.OnCpu, kind.attend), self._decoder.ropes[spec.rope]
        read, ops = x, list[cpu.Op]()
        if spec.q_rank is not None:
            read = self._room("q_a", spec.q_rank)
            ops.append(self._linear(x, w.q_a, None, read))
            ops.append(self._own_norm(read, w.q_a_norm, MLA_NORM_EPS))
        rank, width = spec.kv_rank, spec.nope_dim + spec.rope_dim
        queries, latent = self._room("queries", heads * width), self._room("latent", spec.latent)
        attended = self._room("attended", heads * spec.value_dim)
        by_head = queries.view(-1, heads, width)
        ops += [
            self._linear(read, w.q_b, None, queries),
            rope.turning(by_head[:, :, spec.nope_dim :], table),
            self._linear(x, w.kv_a, None, latent),
            self._own_norm(latent[:, :rank], w.kv_a_norm, MLA_NORM_EPS),
            rope.turning(latent[:, rank:].unsqueeze(1), table),
            *attend.attending(by_head, latent, pages[0], (w.uk, w.uv), attended),
        ]
        return ops, attended

    def _dense(self, columns: int, x: Tensor, w: DenseWeights, out: Tensor) -> list[cpu.Op]:
        gated = self._room("gated", columns)
        return [
            self._linear(x, w.gate_up, None, gated),
            self._linear(gated, w.down, None, out),
        ]

    def _mixture(self, at: int, x: Tensor, w: ExpertWeights) -> list[cpu.Op]:
        """Experts, and the block that every token passes, into `y`."""
        spec = self._decoder.layers[at].feed
        if not isinstance(spec, ExpertsSpec):
            raise TypeError("the weights of experts belong to an ExpertsSpec")
        mixture, feed = self._decoder.mixtures[spec], _of(grouped_gemm.OnCpu, w.reading)
        gate, correction = _of(moe_gate.OnCpu, mixture.gate), w.correction
        logits = self._room("logits", spec.experts, torch.float32 if spec.gate.wide else x.dtype)
        weights = self._room("weights", spec.top_k, torch.float32)
        ids = self._room("ids", spec.top_k, torch.int64)
        ops = [
            self._linear(x, w.router, w.router_bias, logits),
            gate.op(logits, correction if correction.numel() else None, weights, ids),
        ]
        beside = None
        if mixture.shares:
            shared, counted = self._room("shared", x.shape[1]), None
            columns = len(self._decoder.part.expert_columns(spec.shared_columns))
            ops += self._dense(columns, x, w.shared, shared)
            if w.own_gate is not None:
                counted = self._room("counted", 1)
                ops.append(self._linear(x, w.own_gate, None, counted))
            beside = grouped_gemm.Beside(shared, counted)
        of_layer = kernel_weights(w)
        if spec not in self._rooms:
            self._rooms[spec] = feed.room(self._tokens, spec.top_k, of_layer.experts)
        made = feed.ops(x, (weights, ids), of_layer, self._rooms[spec], self._y, beside)
        return [*ops, *made]

    def _linear(self, x: Tensor, w: Matrix, bias: Tensor | None, out: Tensor) -> cpu.Op:
        packed = _of(PackedMatrix, w)
        kernel = _of(linear.OnCpu, packed.kernel)
        return kernel.op(x, packed.numbers, bias if bias is not None and len(bias) else None, out)

    def _room(self, name: str, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """[tokens, width], the same for all layers: what lay there is read by then."""
        key = name, width, dtype or self._decoder.dtype
        if key not in self._memory:
            self._memory[key] = torch.zeros(self._tokens, width, dtype=key[2])
        return self._memory[key]


def _rotation(heads: paged_attention.Geometry, rotated: int) -> rope.RotateAndWrite:
    """Of heads that are normalised before."""
    geometry = rope.Geometry(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        rotated=rotated,
        page_size=heads.page_size,
        dtype=heads.dtype,
        kv_dtype=heads.kv_dtype,
        device=heads.device,
    )
    return rope.choose(geometry).make(geometry)
