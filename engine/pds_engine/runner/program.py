"""All layers of a rank by itself on a CPU as one program: one call a step, and no tensor is made.

It has the operations of models.decoder in the same order, on memory that stays where it is. What a
part of a layer adds to the residual stream is summed up by the norm that follows it.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from pds_kernels import activation, cpu, linear, paged_attention, rms_norm, rope
from pds_kernels.plan import AttentionPlan
from torch import Tensor

from pds_engine.layers.linear import Matrix, PackedMatrix
from pds_engine.models.decoder import Decoder, Kv
from pds_engine.models.pieces import Pieces
from pds_engine.models.weights import DenseWeights, GqaWeights
from pds_engine.runner.attention import Attention, Kind
from pds_engine.spec import GqaSpec

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
        ops = [_of(paged_attention.OnCpu, kind.attend).planning() for kind in attention.unlike]
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


class _Layers:
    """Makes the operations of layers, one layer after the other."""

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        self._decoder = decoder
        self._tokens = tokens
        self._memory: dict[tuple[str, int], Tensor] = {}
        hidden = decoder.spec.hidden
        self.x, self._normed, self._y = (self._room(name, hidden) for name in ("x", "normed", "y"))
        self._pending = False
        """`y` is to be added to `x`."""

    def attention(self, at: int, kind: Kind, pages: tuple[Tensor, ...]) -> list[cpu.Op]:
        """Layer `at`, from the residual stream to `y`."""
        w, pieces = self._decoder.weights.layers[at], self._decoder.pieces[at]
        ops, read = self._read(pieces, w.norms.attention_in)
        if isinstance(w.attention, GqaWeights):
            made, attended = self._grouped(at, read, w.attention, kind, pages)
        else:
            raise _Unserved
        out = self._linear(attended, w.attention.out, w.attention.out_bias, self._y)
        return [*ops, *made, out, *self._given(pieces, w.norms.attention_out)]

    def feed(self, at: int) -> list[cpu.Op]:
        """The feed-forward block of layer `at`, from the residual stream to `y`."""
        w, pieces = self._decoder.weights.layers[at], self._decoder.pieces[at]
        ops, read = self._read(pieces, w.norms.feed_in)
        if isinstance(w.feed, DenseWeights):
            ops += self._dense(pieces, read, w.feed)
        else:
            raise _Unserved
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
        rotate, attend = _of(rope.OnCpu, kind.rotate), _of(paged_attention.OnCpu, kind.attend)
        ops.append(rotate.op(qkv, table, norm, (keys, values), by_head, table=True))
        ops.append(attend.attending(by_head, keys, values, sinks, attended))
        return ops, attended

    def _whole_norms(self, qkv: Tensor, weight: Tensor, queries: int, keys: int) -> list[cpu.Op]:
        """Of all queries together and of all keys together (OLMo 2), in place."""
        spec, ops = self._decoder.spec, []
        heads = queries // weight.shape[1]
        for at, width, own in ((0, queries, weight[:heads]), (queries, keys, weight[heads:])):
            geometry = rms_norm.Geometry(width, qkv.dtype, weight.dtype, spec.norm_eps, qkv.device)
            norm = _of(rms_norm.OnCpu, rms_norm.choose(geometry).make(geometry))
            part = qkv[:, at : at + width]
            ops.append(norm.op(part, own.reshape(-1), None, part, part))
        return ops

    def _dense(self, pieces: Pieces, x: Tensor, w: DenseWeights) -> list[cpu.Op]:
        columns = pieces.shape.columns
        gate_up, gated = self._room("gate_up", 2 * columns), self._room("gated", columns)
        return [
            self._linear(x, w.gate_up, None, gate_up),
            _of(activation.OnCpu, pieces.ops.activate).op(gate_up, gated),
            self._linear(gated, w.down, None, self._y),
        ]

    def _linear(self, x: Tensor, w: Matrix, bias: Tensor | None, out: Tensor) -> cpu.Op:
        packed = _of(PackedMatrix, w)
        kernel = _of(linear.OnCpu, packed.kernel)
        return kernel.op(x, packed.numbers, bias if bias is not None and len(bias) else None, out)

    def _room(self, name: str, width: int) -> Tensor:
        """[tokens, width], the same for all layers: what lay there is read by then."""
        if (name, width) not in self._memory:
            dtype = self._decoder.dtype
            self._memory[name, width] = torch.zeros(self._tokens, width, dtype=dtype)
        return self._memory[name, width]
