"""In what blocks a kernel computes. Chosen so that nothing spills on sm_90; no search at run time.

The table knows no architecture: a geometry is the same for a process that compiles on a CPU and for
one on a GPU, and both must come to the same kernels.
"""

from dataclasses import dataclass

from pds_kernels.paged_attention.plan import Geometry


@dataclass(frozen=True, slots=True)
class Blocks:
    """How one kernel computes."""

    rows: int
    """Of queries in a program: tokens times the heads that share a key. A power of two."""
    places: int
    """Of the context that a program reads at once. A power of two."""
    warps: int
    stages: int
    """Depth of Triton's pipeline. The page table is read ahead of what it points to: of five stages
    two are for reading keys and values while others are computed with."""
    resident: int
    """Programs that a multiprocessor holds: contexts are cut until there are as many."""
    apart: bool = False
    """Whether places that all tokens of a tile see are computed apart, without a mask."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Of both kinds of requests."""

    decode: Blocks
    extend: Blocks
    least: int = 256
    """Positions of the shortest piece of a context that is worth a join."""


def tuning(geometry: Geometry) -> Tuning:
    """Wide heads and wide numbers leave less room for rows and places."""
    fewest = max(16, _power_of_two(geometry.heads // geometry.kv_heads))
    if geometry.dtype.itemsize > 2:
        return Tuning(Blocks(fewest, 32, 4, 1, 2), Blocks(max(fewest, 32), 32, 4, 1, 1, True))
    if geometry.head_dim > 128:
        return Tuning(Blocks(fewest, 32, 4, 5, 2), Blocks(max(fewest, 64), 32, 8, 5, 1, True))
    return Tuning(Blocks(fewest, 64, 4, 5, 2), Blocks(max(fewest, 128), 64, 8, 5, 1, True))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
