"""The one place that knows which kernels there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.fp8_linear import reference
from pds_kernels.fp8_linear.plan import Geometry, Linear

Kernel = choosing.Kernel[Geometry, Linear]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.fp8_linear.deep_gemm", "deep_gemm"),
    choosing.triton("pds_kernels.fp8_linear.triton"),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)


def reading(geometry: Geometry) -> Kernel | None:
    """The first kernel that reads a weight as it is stored; None: there is but the definition,
    which makes a plain weight of it in each call."""
    found = choose(geometry)
    return None if found is KERNELS[-1] else found
