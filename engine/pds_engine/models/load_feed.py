"""Loading a layer's feed-forward block: a gated block, or a mixture of experts.

Experts are computed with as one tensor. It is filled in place, whether they are stored one by one
or in one tensor (gpt-oss), so that no more than one expert's matrices are held beside it. It is in
FP8 where all experts of the layer are kept so (models/matrices.py), and packed where the kernel
reads it so.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pds_kernels.fp8 import Fp8Weight
from pds_kernels.grouped_gemm import Feed, Stack
from torch import Tensor

from pds_engine.models.matrices import matrix, stored
from pds_engine.models.names import ExpertNames, Names
from pds_engine.models.reader import Reader
from pds_engine.models.weights import DenseWeights, ExpertWeights
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DenseSpec, ExpertsSpec


class _Stacks(NamedTuple):
    """The matrices of a rank's experts."""

    gate_up: Stack
    down: Stack
    reading: Feed | None = None
    """What multiplies by them, if packed or in FP8."""


def dense(reader: Reader, spec: DenseSpec, columns: range, names: Names, name: str) -> DenseWeights:
    """`columns` of a gated block whose tensors' names begin with `name`."""
    if names.joined:
        both = f"{name}gate_up_proj.weight"
        gate, up = (both, columns), (both, moved(columns, spec.columns))
    else:
        gate, up = (f"{name}gate_proj.weight", columns), (f"{name}up_proj.weight", columns)
    return DenseWeights(
        gate_up=matrix(reader, gate, up, activation=spec.activation),
        down=matrix(reader, (f"{name}down_proj.weight", None, columns)),
    )


def experts(
    reader: Reader, spec: ExpertsSpec, names: Names, mine: ModelPart, name: str
) -> ExpertWeights:
    """The mixture of the layer whose tensors' names begin with `name`."""
    called, none = names.experts, reader.none()
    held, columns = mine.experts(spec.experts), mine.expert_columns(spec.columns)
    router = reader.plain(f"{name}{called.router}.weight")
    shape = _Shape(held, columns, router.shape[1])
    kept = None if called.gate_up else _kept(reader, spec, called, name, held, columns)
    stacks = kept or _stacked(reader, spec, called, name, shape)
    gate_up_bias = down_bias = none
    if called.gate_up and spec.bias:
        gate_up_bias, down_bias = _biases(reader, called, name, held, columns)
    shared = DenseWeights(none, none)
    if spec.shared_columns:
        own = mine.expert_columns(spec.shared_columns)
        block = DenseSpec(columns=spec.shared_columns, activation=spec.activation)
        shared = dense(reader, block, own, names, f"{name}{called.shared}.")
    return ExpertWeights(
        router=reader.packed(router, wide=spec.gate.wide),
        router_bias=reader.read(f"{name}{called.router}.bias") if spec.gate.bias else none,
        correction=reader.exact(f"{name}{called.correction}") if spec.gate.correction else none,
        gate_up=stacks.gate_up,
        gate_up_bias=gate_up_bias,
        down=stacks.down,
        down_bias=down_bias,
        shared=shared,
        shared_gate=matrix(reader, (f"{name}{called.shared_gate}.weight",))
        if spec.shared_gate
        else none,
        reading=stacks.reading,
    )


def _kept(
    reader: Reader,
    spec: ExpertsSpec,
    called: ExpertNames,
    name: str,
    held: range,
    columns: range,
) -> _Stacks | None:
    """Experts in FP8, as they are stored; None: there are none, one of them cannot be kept so, or
    no kernel reads them."""
    found: _Stacks | None = None
    for place, expert in enumerate(held):
        gate, up, down = (
            f"{name}{each.format(expert)}.weight" for each in (called.gate, called.up, called.down)
        )
        both = stored(reader, (gate, columns), (up, columns))
        last = None if both is None else stored(reader, (down, None, columns))
        if both is None or last is None:
            return None
        if found is None:
            stacks = _room(both, len(held)), _room(last, len(held))
            reading = reader.reading_experts(*stacks, spec.activation)
            if reading is None:
                return None
            found = _Stacks(*stacks, reading)
        for stack, one in zip(stacks, (both, last), strict=True):
            if one.block != stack.block:
                return None
            stack.weight[place].copy_(one.weight)
            stack.scale[place].copy_(one.scale)
    return found


def _room(one: Fp8Weight, experts: int) -> Fp8Weight:
    """For so many matrices like this."""
    weight = one.weight.new_empty(experts, *one.weight.shape)
    return Fp8Weight(weight, one.scale.new_empty(experts, *one.scale.shape), one.block)


class _Shape(NamedTuple):
    """Of a rank's experts."""

    held: range
    columns: range
    hidden: int


def _stacked(
    reader: Reader, spec: ExpertsSpec, called: ExpertNames, name: str, shape: _Shape
) -> _Stacks:
    """Packed, where the kernel packs; else plain."""
    count, columns, hidden = len(shape.held), len(shape.columns), shape.hidden
    each = (_from_stack if called.gate_up else _one_by_one)(reader, called, name, shape)
    packing = reader.packing_experts(count, hidden, columns, spec.activation)
    if packing is not None:
        packed = packing.empty(count)
        for place, (gate_up, down) in enumerate(each):
            packing.pack(gate_up, down, packed, place)
        return _Stacks(*packed, packing)
    both, last = reader.empty(count, 2 * columns, hidden), reader.empty(count, hidden, columns)
    for place, (gate_up, down) in enumerate(each):
        both[place], last[place] = gate_up, down
    return _Stacks(both, last)


def _one_by_one(
    reader: Reader, called: ExpertNames, name: str, shape: _Shape
) -> Iterator[tuple[Tensor, Tensor]]:
    """gate_up and down of each expert."""
    for expert in shape.held:
        gate, up, down = (
            f"{name}{each.format(expert)}.weight" for each in (called.gate, called.up, called.down)
        )
        halves = [reader.plain(half, shape.columns) for half in (gate, up)]
        yield torch.cat(halves), reader.plain(down, None, shape.columns)


def _from_stack(
    reader: Reader, called: ExpertNames, name: str, shape: _Shape
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same. Stored matrices are transposed, and gate's and up's columns come by turns."""
    pairs = _pairs(shape.columns)
    for expert in shape.held:
        one = range(expert, expert + 1)
        [gate_up] = reader.plain(f"{name}{called.gate_up}", one, None, pairs)
        [down] = reader.plain(f"{name}{called.down}", one, shape.columns)
        yield _halves(gate_up.t()), down.t()


def _biases(
    reader: Reader, called: ExpertNames, name: str, held: range, columns: range
) -> tuple[Tensor, Tensor]:
    gate_up = reader.read(f"{name}{called.gate_up}_bias", held, _pairs(columns))
    down = reader.read(f"{name}{called.down}_bias", held)
    shared = columns.start > 0  # another rank has the first columns, and adds it
    return _halves(gate_up.t()).t().contiguous(), torch.zeros_like(down) if shared else down


def _pairs(columns: range) -> range:
    """Where gate's and up's `columns` stand when they come by turns."""
    return range(2 * columns.start, 2 * columns.stop)


def _halves(rows: Tensor) -> Tensor:
    """Rows of gate and of up by turns → gate's rows first."""
    return torch.cat((rows[::2], rows[1::2]))


def moved(part: range, by: int) -> range:
    """`part` of what begins at `by`."""
    return range(part.start + by, part.stop + by)
