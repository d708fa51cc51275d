"""The gated activation on CPUs."""

import ctypes

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.activation.plan import Geometry

LIBRARY = cpu.of_room(__file__)


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("gate_up", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


def serves(geometry: Geometry) -> bool:
    """Any activation."""
    served = geometry.dtype in (torch.float32, torch.bfloat16)
    return served and geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in this dtype."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Gated."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        name = f"pds_{geometry.activation}_{cpu.NAMES[geometry.dtype]}"
        self._gated = cpu.function(LIBRARY.name, name)

    def __call__(self, gate_up: Tensor) -> Tensor:
        out = torch.empty(len(gate_up), self._geometry.columns, dtype=self._geometry.dtype)
        cpu.run(self.op(gate_up, out), len(gate_up))
        return out

    def op(self, gate_up: Tensor, out: Tensor) -> cpu.Op:
        """The same into out [T, columns]."""
        arguments = cpu.fields(
            _Arguments,
            gate_up=gate_up,
            stride=gate_up.stride(0),
            out=out,
            out_stride=out.stride(0),
            columns=self._geometry.columns,
        )
        return cpu.Op(self._gated, arguments)
