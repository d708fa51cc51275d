"""The one place that knows which kernels turn positions, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.rope import cpu, reference
from pds_kernels.rope.plan import Geometry, RotateAndWrite

Kernel = choosing.Kernel[Geometry, RotateAndWrite]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.rope.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
