"""The gate on CPUs; cpu.cpp computes it."""

import ctypes

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.moe_gate.plan import Geometry

LIBRARY = cpu.of_room(__file__)
_SCORES = ("softmax", "sigmoid", "softmax of chosen")
"""By cpu.cpp's numbers."""


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("correction", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("score", ctypes.c_int64),
        ("renormalise", ctypes.c_int64),
        ("scaling", ctypes.c_double),
        ("groups", ctypes.c_int64),
        ("top_groups", ctypes.c_int64),
        ("two_best", ctypes.c_int64),
    )


def serves(geometry: Geometry) -> bool:
    """Any rule, with as many experts as are given."""
    return geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes it."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Gate."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._functions = {
            dtype: cpu.function(LIBRARY.name, f"pds_gate_{name}")
            for dtype, name in cpu.NAMES.items()
        }

    def __call__(self, logits: Tensor, correction: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        shape = len(logits), self._geometry.top_k
        weights = torch.empty(shape, dtype=torch.float32)
        ids = torch.empty(shape, dtype=torch.int64)
        cpu.run(self.op(logits, correction, weights, ids), len(logits))
        return weights, ids

    def op(self, logits: Tensor, correction: Tensor | None, weights: Tensor, ids: Tensor) -> cpu.Op:
        """The same into weights [T, top_k] float32 and ids [T, top_k] int64. logits: rows may lie
        apart."""
        rule = self._geometry
        arguments = cpu.fields(
            _Arguments,
            logits=logits,
            stride=logits.stride(0),
            correction=correction,
            weights=weights,
            ids=ids,
            experts=rule.experts,
            top_k=rule.top_k,
            score=_SCORES.index(rule.score),
            renormalise=rule.renormalise,
            scaling=rule.scaling,
            groups=rule.groups,
            top_groups=rule.top_groups,
            two_best=rule.group_score == "top2",
        )
        return cpu.Op(self._functions[logits.dtype], arguments)
