"""Linear layers on CPUs; cpu.cpp says how weights are packed."""

import ctypes

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.activation import NUMBERS
from pds_kernels.linear.plan import Geometry, check_whole

LIBRARY = cpu.of_room(__file__)
_SERVED = {
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
}
"""Dtypes of tokens and of weights."""


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("made", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("activation", ctypes.c_int64),
    )


class _Packing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("from_", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("gated", ctypes.c_int64),
        ("to", ctypes.c_void_p),
    )


class _Unpacking(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    )


def serves(geometry: Geometry) -> bool:
    """Any shape."""
    served = (geometry.dtype, geometry.weight_dtype) in _SERVED
    return served and geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Linear."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        x, weight = cpu.NAMES[geometry.dtype], cpu.NAMES[geometry.weight_dtype]
        size = geometry.weight_dtype.itemsize
        library = cpu.loaded(LIBRARY.name)
        self._gated = geometry.activation is not None
        library.pds_packed_size.argtypes = (ctypes.c_int64,) * 4
        library.pds_packed_size.restype = ctypes.c_int64
        of_both = geometry.made, geometry.columns, self._gated
        self._numbers = library.pds_packed_size(size, *of_both)
        self._pack = cpu.function(LIBRARY.name, f"pds_pack_{size}")
        self._unpack = cpu.function(LIBRARY.name, f"pds_unpack_{x}_{weight}")
        self._linear = cpu.function(LIBRARY.name, f"pds_linear_{x}_{weight}")

    def pack(self, weight: Tensor) -> Tensor:
        geometry = self._geometry
        to = torch.empty(self._numbers, dtype=geometry.weight_dtype)
        arguments = cpu.fields(
            _Packing,
            from_=weight,
            stride=weight.stride(0),
            rows=geometry.rows,
            columns=geometry.columns,
            gated=self._gated,
            to=to,
        )
        cpu.run(cpu.Op(self._pack, arguments), 0)
        return to

    def unpack(self, packed: Tensor, ids: Tensor) -> Tensor:
        """As plan.Linear.

        Raises:
            IndexError: an id is out of range.
        """
        check_whole(self._geometry)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._geometry.rows:
            raise IndexError(f"ids are 0 to {self._geometry.rows - 1}, not {ids.tolist()}")
        out = torch.empty(len(ids), self._geometry.columns, dtype=self._geometry.dtype)
        cpu.run(self.unpacking(packed, ids, out), len(ids))
        return out

    def unpacking(self, packed: Tensor, ids: Tensor | None, out: Tensor) -> cpu.Op:
        """`unpack` into out [T, columns]; ids None: the step's."""
        arguments = cpu.fields(
            _Unpacking,
            packed=packed,
            ids=ids,
            columns=self._geometry.columns,
            out=out,
            out_stride=out.stride(0),
        )
        return cpu.Op(self._unpack, arguments)

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty(len(x), self._geometry.made, dtype=self._geometry.out_dtype)
        cpu.run(self.op(x, packed, bias, out), len(x))
        return out

    def op(self, x: Tensor, packed: Tensor, bias: Tensor | None, out: Tensor) -> cpu.Op:
        """The same into out [T, made]."""
        arguments = cpu.fields(
            _Arguments,
            x=x,
            x_stride=x.stride(0),
            weight=packed,
            bias=bias,
            out=out,
            out_stride=out.stride(0),
            made=self._geometry.made,
            columns=self._geometry.columns,
            activation=NUMBERS[self._geometry.activation],
        )
        return cpu.Op(self._linear, arguments)
