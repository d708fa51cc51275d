"""The one place that knows which samplers there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.sampler import reference
from pds_kernels.sampler.plan import Geometry, GumbelMax

Kernel = choosing.Kernel[Geometry, GumbelMax]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.sampler.triton"),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
