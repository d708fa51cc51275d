"""The one place that knows which kernels there are, and which of them a process runs."""

from pds_kernels import choosing
from pds_kernels.grouped_gemm import cpu, reference
from pds_kernels.grouped_gemm.plan import Feed, Geometry, PackingFeed

Kernel = choosing.Kernel[Geometry, Feed]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.grouped_gemm.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)


def reading(geometry: Geometry) -> Kernel | None:
    """The first kernel that reads weights as they are stored; None: there is but the definition,
    which makes plain ones of those in FP8 in each call."""
    found = choose(geometry)
    return None if found is KERNELS[-1] else found


def packing(geometry: Geometry) -> PackingFeed | None:
    """The first kernel, if it packs weights; None: it reads plain ones."""
    return cpu.make(geometry) if choose(geometry).name == "cpu" else None
