"""The one place that knows which samplers there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.sampler import cpu, reference
from pds_kernels.sampler.plan import Geometry, GumbelMax, Selection

Kernel = choosing.Kernel[Geometry, GumbelMax]
Selector = choosing.Kernel[Geometry, Selection]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.sampler.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""
SELECTORS: tuple[Selector, ...] = (
    Selector("cpu", serves=cpu.serves, make=cpu.make),
    Selector("reference", serves=choosing.always, make=reference.selection),
)
"""Likewise, of what selects the likeliest tokens."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)


def choose_selection(geometry: Geometry) -> Selector:
    """The first selector that serves `geometry`."""
    return choosing.first(SELECTORS, geometry)
