"""Tiles of the FP8 product: data, and the look-up of what a step takes.

The tables are for sm_90, chosen by what the compiler says: no register is spilled, and the tiles in
flight fit in shared memory. No device has measured them yet.
"""

from dataclasses import dataclass, replace

from pds_kernels.fp8.scaling import depth_of
from pds_kernels.fp8_linear.plan import Geometry
from pds_kernels.targets import SMS

NEIGHBOURS = 8
"""Tiles of rows that share what they read of x in the second-level cache."""
ADDED = 1024
"""Numbers of the result that a program adds up of pieces."""
_STEPS_OF_PIECE = 4
"""At least: a shorter sum costs more to keep than to wait for."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program computes, and how."""

    tokens: int
    rows: int
    """Of the weight."""
    depth: int
    """Columns of a step. One scale covers them."""
    warps: int
    stages: int
    """Steps whose tiles are in flight."""
    splits: bool = True
    """Whether the columns may be cut into pieces: where a step has few tokens."""


_BUCKETS = (16, 64)
"""Up to so many tokens one program holds them all, and the weight is read once."""
_QUANTISED = {
    16: Tile(16, 64, 128, 4, 6),
    64: Tile(64, 64, 128, 4, 5),
    128: Tile(128, 128, 128, 8, 4, splits=False),
}
_EXACT = {
    16: Tile(16, 64, 128, 4, 6),
    64: Tile(64, 64, 128, 4, 4),
    128: Tile(128, 128, 64, 8, 4, splits=False),
}
_WIDE = {
    16: Tile(16, 32, 32, 4, 3),
    64: Tile(32, 32, 32, 4, 3),
    128: Tile(32, 32, 32, 4, 3, splits=False),
}
"""For float32, which no tensor core multiplies in full."""


def tiles(geometry: Geometry) -> tuple[Tile, ...]:
    """All that a step may take."""
    return tuple(_fitted(geometry, each) for each in _table(geometry).values())


def tile(geometry: Geometry, tokens: int) -> Tile:
    """The one for a step of so many tokens."""
    bucket = next((each for each in _BUCKETS if tokens <= each), 2 * _BUCKETS[-1])
    return _fitted(geometry, _table(geometry)[bucket])


def pieces(geometry: Geometry, cut: Tile) -> int:
    """Into how many pieces the columns are cut, so that tiles of rows alone need not fill the GPU.

    Only where a step has few tokens: else there are tiles enough, and sums would be many. The count
    is compiled into a kernel, so a plan must know the GPU that will run it.
    """
    sms = geometry.gpu.sms if geometry.gpu else SMS[90]
    row_tiles, steps = -(-geometry.rows // cut.rows), -(-geometry.columns // cut.depth)
    return max(min(sms // row_tiles, steps // _STEPS_OF_PIECE), 1) if cut.splits else 1


def _table(geometry: Geometry) -> dict[int, Tile]:
    if geometry.quantised_activations:
        return _QUANTISED
    return _WIDE if geometry.dtype.itemsize == 4 else _EXACT


def _fitted(geometry: Geometry, cut: Tile) -> Tile:
    return replace(cut, depth=min(cut.depth, depth_of(geometry.block)))
