"""The one place that knows which kernels there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.paged_attention import cpu, reference
from pds_kernels.paged_attention.plan import Geometry, Prepare

Kernel = choosing.Kernel[Geometry, Prepare]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.paged_attention.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
