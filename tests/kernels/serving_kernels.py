"""Which kernels a test runs: those that serve this machine, in all of its instruction sets, and
Triton's in its interpreter.

`pytest -v` names them, and `implementations` in the summary.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import cpu_libraries
import pytest
import torch
from pds_kernels.choosing import Kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Geometry = Callable[[torch.device], object]


def served(kernels: Sequence[Kernel[Any, Any]], geometry: Geometry, *devices: str) -> list[Any]:
    """(kernel, device): each kernel on each device that it serves here, of `devices` or of all."""
    return [
        pytest.param(kernel, device, marks=(*marks, *own), id=f"{kernel.name}-{device}")
        for device, marks in (("cpu", ()), ("cuda", (pytest.mark.gpu,)))
        for best in kernels
        for kernel, own in ((best, ()), *cpu_libraries.others(best))
        if device in (devices or ("cpu", "cuda")) and _serves(kernel, geometry, device)
    ]


def _serves(kernel: Kernel[Any, Any], geometry: Geometry, device: str) -> bool:
    """A kernel of Triton says on the meta device what it would serve on a GPU; the interpreter
    takes tensors of the CPU."""
    interpreted = INTERPRETED and kernel.of_triton and device == "cpu"
    return kernel.serves(geometry(torch.device("meta" if interpreted else device)))
