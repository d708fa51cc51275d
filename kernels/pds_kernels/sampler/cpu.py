"""The choice of tokens on CPUs; cpu.cpp, scores.h and noise.h say how."""

import ctypes
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.sampler.plan import Bounds, Geometry, Penalties, Rows

LIBRARY = cpu.of_room(__file__)
_LEAST_PART = 4096
"""Columns for which another thread is worth its while."""
_TASKS = 4
"""For each thread, so that none waits long for the last."""


class _Drawing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("temperatures", ctypes.c_void_p),
        ("least", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("choices", ctypes.c_void_p),
        ("top_k", ctypes.c_void_p),
        ("top_p", ctypes.c_void_p),
        ("log_min_p", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
    )


class _Listing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("temperatures", ctypes.c_void_p),
        ("most", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
    )


class _Weighing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("temperatures", ctypes.c_void_p),
        ("best", ctypes.c_void_p),
        ("least", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


class _Penalising(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("at", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("prompted", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("repetition", ctypes.c_void_p),
        ("presence", ctypes.c_void_p),
        ("frequency", ctypes.c_void_p),
    )


def serves(geometry: Geometry) -> bool:
    """Any vocabulary."""
    return geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up the operations."""
    return OnCpu(geometry)


class OnCpu:
    """plan.GumbelMax and plan.Selection."""

    at_once = True

    def __init__(self, geometry: Geometry) -> None:
        self._first = geometry.first
        look_up = partial(cpu.function, LIBRARY.name)
        self._draw, self._join = look_up("pds_draw"), look_up("pds_join")
        self._likeliest, self._mass = look_up("pds_likeliest"), look_up("pds_mass")
        self._log_sum = look_up("pds_log_sum")
        self._penalise, self._restore = look_up("pds_penalise"), look_up("pds_restore")

    def __call__(self, logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return self._drawn(logits, rows, None)

    def draw(self, logits: Tensor, rows: Rows, bounds: Bounds) -> tuple[Tensor, Tensor]:
        return self._drawn(logits, rows, bounds)

    def _drawn(self, logits: Tensor, rows: Rows, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
        """A row with bounds is one thread's: where they end shows in the whole of it."""
        logits, (count, columns) = _by_rows(logits), logits.shape
        wanted = -(-_TASKS * torch.get_num_threads() // max(count, 1))
        parts = 1 if bounds else max(1, min(wanted, columns // _LEAST_PART))
        values = torch.empty(count, parts, dtype=torch.float64)
        ids = torch.empty(count, parts, dtype=torch.int64)
        (indices, choices), (low, high) = rows.draws.counter, rows.draws.key
        arguments = cpu.fields(
            _Drawing,
            logits=logits,
            stride=logits.stride(0),
            columns=columns,
            first=self._first,
            rows=count,
            parts=parts,
            temperatures=rows.temperatures,
            least=rows.least,
            low=low.contiguous(),
            high=high.contiguous(),
            indices=indices.contiguous(),
            choices=choices.contiguous(),
            top_k=bounds.top_k if bounds else None,
            top_p=bounds.top_p if bounds else None,
            log_min_p=bounds.log_min_p if bounds else None,
            values=values,
            ids=ids,
        )
        ops = cpu.Op(self._draw, arguments), cpu.Op(self._join, arguments)
        cpu.Program(ops[: min(parts, 2)]).run(cpu.Step.of(count))
        return values[:, 0], ids[:, 0]

    def likeliest(self, logits: Tensor, temperatures: Tensor, most: int) -> Tensor:
        logits, (count, columns) = _by_rows(logits), logits.shape
        packed = torch.empty(count, min(most, columns), dtype=torch.int64)
        arguments = cpu.fields(
            _Listing,
            logits=logits,
            stride=logits.stride(0),
            columns=columns,
            first=self._first,
            rows=count,
            temperatures=temperatures.contiguous(),
            most=packed.shape[1],
            packed=packed,
        )
        cpu.run(cpu.Op(self._likeliest, arguments), count)
        return packed

    def mass(self, logits: Tensor, temperatures: Tensor, best: Tensor, least: Tensor) -> Tensor:
        given = {"temperatures": temperatures, "best": best, "least": least}
        return self._summed(self._mass, logits, given)

    def log_sum(self, logits: Tensor) -> Tensor:
        return self._summed(self._log_sum, logits, {})

    def _summed(self, function: int, logits: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        logits, (count, columns) = _by_rows(logits), logits.shape
        sums = torch.empty(count, dtype=torch.float64)
        arguments = cpu.fields(
            _Weighing,
            logits=logits,
            stride=logits.stride(0),
            columns=columns,
            rows=count,
            sums=sums,
            **{name: tensor.contiguous() for name, tensor in given.items()},
        )
        cpu.run(cpu.Op(function, arguments), count)
        return sums

    def penalise(self, logits: Tensor, penalties: Penalties) -> Callable[[], None]:
        count, columns = len(penalties.rows), penalties.prompted.shape[1]
        arguments = cpu.fields(
            _Penalising,
            logits=logits,
            stride=logits.stride(0),
            columns=columns,
            rows=count,
            at=penalties.rows,
            slots=penalties.slots.contiguous(),
            prompted=penalties.prompted,
            counts=penalties.counts,
            table_stride=penalties.counts.stride(0),
            repetition=penalties.repetition,
            presence=penalties.presence,
            frequency=penalties.frequency,
        )
        cpu.run(cpu.Op(self._penalise, arguments), count)
        return partial(cpu.run, cpu.Op(self._restore, arguments), count)


def _by_rows(logits: Tensor) -> Tensor:
    """With the numbers of a row side by side."""
    return logits if logits.stride(1) == 1 else logits.contiguous()
