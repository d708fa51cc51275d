"""Experts on CPUs, of weights that are packed once; cpu.cpp computes them."""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.activation import NUMBERS
from pds_kernels.grouped_gemm.plan import ExpertWeights, Geometry, Packed, numbers

LIBRARY = cpu.of_room(__file__)
_SERVED = {
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
}
"""Dtypes of rows and of weights."""


class _Experts(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("counts", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("choices", ctypes.c_int64),
        ("experts", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("gate_up", ctypes.c_void_p),
        ("gate_up_bias", ctypes.c_void_p),
        ("gated", ctypes.c_void_p),
        ("down", ctypes.c_void_p),
        ("down_bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class _Sorting(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("ids", ctypes.c_void_p),
        ("choices", ctypes.c_int64),
        ("experts", ctypes.c_int64),
        ("counts", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
    )


class _Summing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("choices", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("shared", ctypes.c_void_p),
        ("counted", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    )


class _Packing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("gate_up", ctypes.c_void_p),
        ("down", ctypes.c_void_p),
        ("hidden", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("packed_gate_up", ctypes.c_void_p),
        ("packed_down", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Room:
    """What a mixture computes between two operations. All layers of a stage may use the same."""

    counts: Tensor  # [E] int64
    order: Tensor  # [T·k] int64
    gated: Tensor  # [T·k, C]
    rows: Tensor  # [T·k, hidden], each token's choices in their order


class Beside(NamedTuple):
    """The block that every token passes, computed before."""

    rows: Tensor
    """[T, hidden], contiguous."""
    counted: Tensor | None = None
    """[T]: the sigmoid of it is what the block counts for a token."""


def serves(geometry: Geometry) -> bool:
    """Any shape of plain weights."""
    dtypes = (geometry.dtype, geometry.packed_dtype)
    plain = geometry.block is None and dtypes in _SERVED
    return plain and geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.PackingFeed."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._dtype = geometry.packed_dtype
        row, size = cpu.NAMES[geometry.dtype], self._dtype.itemsize
        both = f"{row}_{cpu.NAMES[self._dtype]}"
        self._sizes = [
            _size(name, size, geometry.hidden, geometry.columns)
            for name in ("pds_gate_up_size", "pds_down_size")
        ]
        self._pack = cpu.function(LIBRARY.name, f"pds_pack_{size}")
        self._sort = cpu.function(LIBRARY.name, "pds_sort_choices")
        self._gate_up = cpu.function(LIBRARY.name, f"pds_gate_up_{both}")
        self._down = cpu.function(LIBRARY.name, f"pds_down_{both}")
        self._sum = cpu.function(LIBRARY.name, f"pds_sum_{row}")

    def empty(self, experts: int) -> Packed:
        gate_up, down = (torch.empty(experts, size, dtype=self._dtype) for size in self._sizes)
        return Packed(gate_up, down)

    def pack(self, gate_up: Tensor, down: Tensor, packed: Packed, place: int) -> None:
        arguments = cpu.fields(
            _Packing,
            gate_up=gate_up.to(self._dtype).contiguous(),
            down=down.to(self._dtype).contiguous(),
            hidden=self._geometry.hidden,
            columns=self._geometry.columns,
            packed_gate_up=packed.gate_up[place],
            packed_down=packed.down[place],
        )
        cpu.run(cpu.Op(self._pack, arguments), 0)

    def __call__(self, rows: Tensor, counts: Tensor, weights: ExpertWeights) -> Tensor:
        """As plan.PackingFeed.

        Raises:
            ValueError: rows are of another dtype than the kernel's.
        """
        if rows.dtype != self._geometry.dtype:
            wanted = self._geometry.dtype
            raise ValueError(f"rows are {rows.dtype}: choose a kernel for them, not for {wanted}")
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        room = Room(
            counts=counts,
            order=torch.empty(0, dtype=torch.int64),
            gated=rows.new_empty(len(rows), self._geometry.columns),
            rows=rows.new_empty(len(rows), self._geometry.hidden),
        )
        made = self._experts(rows, 1, self._packed(weights), room)
        cpu.Program([cpu.Op(self._gate_up, made), cpu.Op(self._down, made)]).run(
            cpu.Step.of(len(rows))
        )
        return room.rows

    def room(self, tokens: int, choices: int, experts: int) -> Room:
        """For so many tokens at the most."""
        rows, rule = tokens * choices, self._geometry
        return Room(
            counts=torch.empty(experts, dtype=torch.int64),
            order=torch.empty(rows, dtype=torch.int64),
            gated=torch.empty(rows, rule.columns, dtype=rule.dtype),
            rows=torch.empty(rows, rule.hidden, dtype=rule.dtype),
        )

    def ops(
        self,
        x: Tensor,
        chosen: tuple[Tensor, Tensor],
        of_layer: ExpertWeights,
        room: Room,
        out: Tensor,
        beside: Beside | None = None,
    ) -> list[cpu.Op]:
        """permute.experts, and what stands `beside` them added, into out [T, hidden].

        x: [T, hidden], rows may lie apart; chosen: weights [T, k] float32 and ids [T, k] int64, as
        a gate gives them; of_layer: packed.
        """
        weights, ids = chosen
        choices, hidden = ids.shape[1], self._geometry.hidden
        sorting = cpu.fields(
            _Sorting,
            ids=ids,
            choices=choices,
            experts=of_layer.experts,
            counts=room.counts,
            order=room.order,
        )
        summing = cpu.fields(
            _Summing,
            rows=room.rows,
            choices=choices,
            hidden=hidden,
            weights=weights,
            shared=beside.rows if beside else None,
            counted=beside.counted if beside else None,
            out=out,
            out_stride=out.stride(0),
        )
        made = self._experts(x, choices, of_layer, room)
        return [
            cpu.Op(self._sort, sorting),
            cpu.Op(self._gate_up, made),
            cpu.Op(self._down, made),
            cpu.Op(self._sum, summing),
        ]

    def _experts(
        self, x: Tensor, choices: int, weights: ExpertWeights, room: Room
    ) -> ctypes.Structure:
        rule = self._geometry
        made: ctypes.Structure = cpu.fields(
            _Experts,
            counts=room.counts,
            order=room.order if room.order.numel() else None,
            choices=choices,
            experts=weights.experts,
            hidden=rule.hidden,
            columns=rule.columns,
            activation=NUMBERS[rule.activation],
            x=x,
            x_stride=x.stride(0),
            gate_up=numbers(weights.gate_up),
            gate_up_bias=weights.gate_up_bias,
            gated=room.gated,
            down=numbers(weights.down),
            down_bias=weights.down_bias,
            out=room.rows,
        )
        return made

    def _packed(self, weights: ExpertWeights) -> ExpertWeights:
        """Of plain weights, which an engine packs at load."""
        gate_up, down = numbers(weights.gate_up), numbers(weights.down)
        if gate_up.dim() == 2:
            return weights
        packed = self.empty(weights.experts)
        for place in range(weights.experts):
            self.pack(gate_up[place], down[place], packed, place)
        return weights._replace(gate_up=packed.gate_up, down=packed.down)


def _size(name: str, item: int, hidden: int, columns: int) -> int:
    function = getattr(cpu.loaded(LIBRARY.name), name)
    function.argtypes, function.restype = (ctypes.c_int64,) * 3, ctypes.c_int64
    return int(function(item, hidden, columns))
