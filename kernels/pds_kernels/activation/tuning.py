"""How a row is cut: one table for all GPUs, since nothing but memory bounds this."""

from dataclasses import dataclass

import torch

_VECTOR = 16
"""Bytes that a thread loads at once."""
_WARPS, _WARP = 4, 32


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes."""

    columns: int
    """A power of two."""
    warps: int


def tile(columns: int, dtype: torch.dtype) -> Tile:
    """A vector of `gate` and one of `up` for each thread, and no more threads than there are
    vectors: for rows of `columns`."""
    vector = _VECTOR // dtype.itemsize
    warps = 1
    while warps < _WARPS and warps * _WARP * vector < columns:
        warps *= 2
    return Tile(warps * _WARP * vector, warps)
