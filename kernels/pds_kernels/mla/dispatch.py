"""The one place that knows which kernels there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.mla import reference
from pds_kernels.mla.plan import Geometry, Prepare

Kernel = choosing.Kernel[Geometry, Prepare]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.mla.triton"),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
