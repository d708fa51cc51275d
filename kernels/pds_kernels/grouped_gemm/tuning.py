"""Tiles of the experts' products: data, and the look-up of what a step takes.

The tables are for sm_90, chosen by what the compiler says: no register is spilled, and the tiles in
flight fit in shared memory. No device has measured them yet.
"""

from dataclasses import dataclass, replace

import torch

from pds_kernels.fp8.scaling import depth_of

_COMPARED = 8192
"""Tiles times experts of a program of the table's kernel: 64 a thread."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of both products computes, and how."""

    tokens: int
    """Of one expert."""
    gated: int
    """Columns of gate, and as many of up, in the first product."""
    hidden: int
    """Columns of the second product."""
    depth: int
    """Numbers of a step of a sum. The same in a table: a row's sum is in the same order in all. In
    FP8 one scale covers them."""
    warps: int
    stages: int
    """Steps whose tiles are in flight."""


_BUCKETS = (16, 64)
"""Rows of an expert on the average. Up to so many, most experts have one tile, and its weights are
read once."""
_HALF = {
    16: Tile(16, 64, 64, 64, 4, 4),
    64: Tile(64, 64, 64, 64, 4, 4),
    128: Tile(128, 64, 128, 64, 8, 4),
}
_SINGLE = {
    16: Tile(16, 32, 32, 32, 4, 3),
    64: Tile(32, 32, 32, 32, 4, 3),
    128: Tile(32, 32, 32, 32, 4, 3),
}
"""For float32, which no tensor core multiplies in full."""
_FP8 = {
    16: Tile(16, 64, 64, 128, 4, 4),
    64: Tile(64, 64, 64, 128, 4, 4),
    128: Tile(128, 64, 128, 128, 8, 4),
}
Block = tuple[int, int]


def tiles(dtype: torch.dtype, block: Block | None = None) -> tuple[Tile, ...]:
    """All that a step may take. `block`: what of weights in FP8 has one scale."""
    return tuple(_table(dtype, block).values())


def tile(dtype: torch.dtype, experts: int, rows: int, block: Block | None = None) -> Tile:
    """The one for a step of so many rows."""
    bucket = next((each for each in _BUCKETS if rows <= each * experts), 2 * _BUCKETS[-1])
    return _table(dtype, block)[bucket]


def _table(dtype: torch.dtype, block: Block | None) -> dict[int, Tile]:
    if block is None:
        return _SINGLE if dtype.itemsize == 4 else _HALF
    depth = depth_of(block)
    return {rows: replace(cut, depth=min(cut.depth, depth)) for rows, cut in _FP8.items()}


def looked_up(padded: int) -> int:
    """Tiles that a program of the table's kernel looks up among so many experts."""
    return max(_COMPARED // padded, 1)
