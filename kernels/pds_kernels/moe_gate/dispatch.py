"""The one place that knows which gates there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.moe_gate import cpu, reference
from pds_kernels.moe_gate.plan import Gate, Geometry

Kernel = choosing.Kernel[Geometry, Gate]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.moe_gate.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)
