"""In what blocks a kernel computes. Chosen so that nothing spills on sm_90; no search at run time.

The table knows no architecture: a geometry is the same for a process that compiles on a CPU and for
one on a GPU, and both must come to the same kernels.
"""

from dataclasses import dataclass

from pds_kernels.mla.plan import Geometry


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the kernel computes."""

    rows: int
    """Heads of a program. A power of two."""
    places: int
    """Of the context that a program reads at once. A power of two."""
    warps: int
    stages: int
    """Depth of Triton's pipeline. The page table is read ahead of what it points to: of five stages
    two are for reading latents while others are computed with."""
    resident: int
    """Programs that a multiprocessor holds: contexts are cut until there are as many."""
    least: int = 512
    """Positions of the shortest piece of a context that is worth a join. A piece of 128 heads
    leaves 256 KiB of sums, as many bytes as 228 latents of DeepSeek-V3."""


def tuning(geometry: Geometry) -> Blocks:
    """64 heads for each read of a latent, the fewest that warp groups of sm_90 multiply at once."""
    if geometry.dtype.itemsize > 2:
        return Blocks(rows=16, places=16, warps=4, stages=1, resident=1)
    if geometry.heads <= 16:
        return Blocks(rows=16, places=32, warps=4, stages=5, resident=2)
    return Blocks(rows=64, places=32, warps=8, stages=5, resident=1)
