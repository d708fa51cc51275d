"""Normalisation on CPUs."""

import ctypes

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.rms_norm.plan import Geometry

LIBRARY = cpu.of_room(__file__)
_SERVED = {
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
}
"""Dtypes of the stream and of the weight."""


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("residual_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("total_stride", ctypes.c_int64),
        ("normed", ctypes.c_void_p),
        ("normed_stride", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("eps", ctypes.c_double),
    )


def serves(geometry: Geometry) -> bool:
    """Any width."""
    served = (geometry.dtype, geometry.weight_dtype) in _SERVED
    return served and geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Norm."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        stream, weight = cpu.NAMES[geometry.dtype], cpu.NAMES[geometry.weight_dtype]
        self._norm = cpu.function(LIBRARY.name, f"pds_norm_{stream}_{weight}")

    def __call__(
        self, x: Tensor, weight: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        normed = torch.empty(x.shape, dtype=x.dtype)
        total = x if residual is None else torch.empty(x.shape, dtype=x.dtype)
        cpu.run(self.op(x, weight, residual, total, normed), len(x))
        return total, normed

    def op(
        self,
        x: Tensor,
        weight: Tensor | None,
        residual: Tensor | None,
        total: Tensor,
        normed: Tensor | None,
    ) -> cpu.Op:
        """The sum into `total`, which may be x or the residual, and that normed into `normed`.
        residual None: x is normed, and may be `normed`; weight None: there is a sum alone. All of
        them: [T, hidden], rows may lie apart."""
        arguments = cpu.fields(
            _Arguments,
            x=x,
            x_stride=x.stride(0),
            residual=residual,
            residual_stride=0 if residual is None else residual.stride(0),
            weight=weight,
            total=total,
            total_stride=total.stride(0),
            normed=normed,
            normed_stride=0 if normed is None else normed.stride(0),
            hidden=self._geometry.hidden,
            eps=self._geometry.eps,
        )
        return cpu.Op(self._norm, arguments)
