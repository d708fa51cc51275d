"""The one place that knows which activations there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.activation import reference
from pds_kernels.activation.plan import Gated, Geometry

Kernel = choosing.Kernel[Geometry, Gated]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.activation.triton"),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
