"""Which kernels a test runs: those that serve this machine. `pytest -v` names them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pds_kernels.choosing import Kernel


def served(
    kernels: Sequence[Kernel[Any, Any]], geometry: Callable[[torch.device], object], *devices: str
) -> list[object]:
    """(kernel, device): each kernel on each device that it serves here, of `devices` or of all."""
    return [
        pytest.param(kernel, device, marks=marks, id=f"{kernel.name}-{device}")
        for device, marks in (("cpu", ()), ("cuda", pytest.mark.gpu))
        for kernel in kernels
        if device in (devices or ("cpu", "cuda")) and kernel.serves(geometry(torch.device(device)))
    ]
