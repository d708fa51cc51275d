"""Rotary positions and the writing of pages on CPUs."""

import ctypes

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.rope.plan import Geometry, check

LIBRARY = cpu.of_room(__file__)
_WIDEST = 1024
"""Numbers of a head: cpu.cpp's MOST."""


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("indexed", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("queries", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("page_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("place_stride", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("rotated", ctypes.c_int64),
    )


class _Turning(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("rotated", ctypes.c_int64),
    )


def serves(geometry: Geometry) -> bool:
    """Heads of up to 1,024 numbers, pages in any of the three dtypes."""
    served = geometry.dtype in (torch.float32, torch.bfloat16) and geometry.kv_dtype in cpu.NAMES
    here = geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)
    return here and served and geometry.head_dim <= _WIDEST


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.RotateAndWrite."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        x, kv = cpu.NAMES[geometry.dtype], cpu.NAMES[geometry.kv_dtype]
        self._functions = {
            norm: cpu.function(LIBRARY.name, f"pds_rotate_and_write_{x}_{cpu.NAMES[norm]}_{kv}")
            for norm in {geometry.dtype, torch.float32}
        }

    def __call__(
        self,
        qkv: Tensor,
        rows: Tensor,
        norm: Tensor | None,
        keys: Tensor,
        values: Tensor,
        write_slots: Tensor,
    ) -> Tensor:
        check(self._geometry, norm)
        queries = torch.empty(
            len(qkv), self._geometry.heads, self._geometry.head_dim, dtype=self._geometry.dtype
        )
        op = self.op(qkv, rows, norm, (keys, values), queries)
        step = cpu.fields(cpu.Step, tokens=len(qkv), write_slots=write_slots)
        cpu.Program((op,)).run(step)
        return queries

    def op(
        self,
        qkv: Tensor,
        rows: Tensor,
        norm: Tensor | None,
        pages: tuple[Tensor, Tensor],
        queries: Tensor,
        *,
        table: bool = False,
    ) -> cpu.Op:
        """The same into queries [T, heads, D]. table: `rows` are of all positions, and the step's
        say which."""
        geometry, (keys, values) = self._geometry, pages
        dtype = geometry.dtype if norm is None else norm.dtype
        arguments = cpu.fields(
            _Arguments,
            qkv=qkv,
            stride=qkv.stride(0),
            rows=rows,
            indexed=int(table),
            norm=norm,
            eps=geometry.norm_eps or 0.0,
            queries=queries,
            keys=keys,
            values=values,
            page_stride=keys.stride(0),
            head_stride=keys.stride(1),
            place_stride=keys.stride(2),
            page_size=geometry.page_size,
            heads=geometry.heads,
            kv_heads=geometry.kv_heads,
            dim=geometry.head_dim,
            rotated=geometry.rotated,
        )
        return cpu.Op(self._functions[dtype], arguments)


def turning(x: Tensor, table: Tensor) -> cpu.Op:
    """Rotate x [T, heads, rotated] in place, by the step's positions in table [positions,
    rotated]."""
    arguments = cpu.fields(
        _Turning,
        x=x,
        stride=x.stride(0),
        heads=x.shape[1],
        head_stride=x.stride(1),
        table=table,
        rotated=table.shape[1],
    )
    return cpu.Op(cpu.function(LIBRARY.name, f"pds_rotate_{cpu.NAMES[x.dtype]}"), arguments)
