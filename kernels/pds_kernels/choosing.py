"""How a process picks a kernel: the first of a list that serves what is asked of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

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


def always(_: object) -> bool:
    """`serves` of a reference."""
    return True


def first(kernels: Sequence[Kernel[G, M]], geometry: G) -> Kernel[G, M]:
    """The first kernel that serves `geometry`. The last one serves everything."""
    return next(kernel for kernel in kernels if kernel.serves(geometry))
