"""How a process picks a kernel: the first of a list that serves what is asked of it."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pds_kernels import on_triton

G = TypeVar("G")
M = TypeVar("M")


@dataclass(frozen=True)  # with slots, Kernel[G, M](…) fails in Python 3.11
class Kernel(Generic[G, M]):
    """One implementation of an operation, for some geometries G."""

    name: str
    serves: Callable[[G], bool]
    """Whether it can run this, on this machine. It must not raise where its library is missing."""
    make: Callable[[G], M]
    """Get ready to run this: workspace and whatever is loaded once belongs here."""
    of_triton: bool = False
    """Triton's interpreter runs it on a CPU, in tests."""


def always(_: object) -> bool:
    """`serves` of a reference."""
    return True


def triton(module: str, name: str = "triton") -> Kernel[Any, Any]:
    """The kernel in `module`, which is of Triton or takes its help. Its `serves` and `make` are
    asked once they are needed: importing Triton takes a second, and it may not be installed."""

    def serves(geometry: Any) -> bool:
        there = on_triton.runs_on(geometry.device)
        return there and bool(importlib.import_module(module).serves(geometry))

    def make(geometry: Any) -> Any:
        return importlib.import_module(module).make(geometry)

    return Kernel(name, serves=serves, make=make, of_triton=True)


def first(kernels: Sequence[Kernel[G, M]], geometry: G) -> Kernel[G, M]:
    """The first kernel that serves `geometry`. The last one serves everything."""
    return next(kernel for kernel in kernels if kernel.serves(geometry))
