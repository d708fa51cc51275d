"""The one place that knows which kernels there are, and which of them a process runs."""

from collections.abc import Callable
from dataclasses import dataclass

from pds_kernels.paged_attention import reference
from pds_kernels.paged_attention.plan import Geometry, Prepare


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation."""

    name: str
    serves: Callable[[Geometry], bool]
    """Whether it can run this, on this machine. It must not raise where its library is missing."""
    make: Callable[[Geometry], Prepare]
    """Get ready to run this: workspace and whatever is loaded once belongs here."""


def _always(_: Geometry) -> bool:
    return True


KERNELS: tuple[Kernel, ...] = (Kernel("reference", serves=_always, make=reference.make),)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return next(kernel for kernel in KERNELS if kernel.serves(geometry))
