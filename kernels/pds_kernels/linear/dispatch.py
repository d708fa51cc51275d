"""The one place that knows which kernels there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.linear import cpu, reference
from pds_kernels.linear.plan import Geometry, Linear

Kernel = choosing.Kernel[Geometry, Linear]
KERNELS: tuple[Kernel, ...] = (
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
