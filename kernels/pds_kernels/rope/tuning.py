"""How many heads a program has: one table for all GPUs, since nothing but memory bounds this."""

from dataclasses import dataclass

import torch

WIDEST = 1024
"""Dimensions of a head that a program holds."""
_VECTOR = 16
"""Bytes that a thread loads at once."""
_WARP, _MOST_WARPS = 32, 8


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes."""

    heads: int
    """A power of two."""
    warps: int


def tile(heads: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """Heads of about `WIDEST` dimensions together, and a thread for each vector of half a head.

    heads: a token's, of queries, keys and values. head_dim: a power of two.
    """
    together = 1
    while together < heads and 2 * together * head_dim <= WIDEST:
        together *= 2
    vectors = together * head_dim // 2 * dtype.itemsize // _VECTOR
    return Tile(together, max(1, min(vectors // _WARP, _MOST_WARPS)))
