"""How rows are split over a GPU: one table for all."""

from dataclasses import dataclass

BLOCK = 1024
"""Columns that a program looks at together, a multiple of four."""
WARPS = 4
MOST_PARTS = 256
"""Of a row: a single program compares them in the end."""
_WAVE = 4
"""Programs for each multiprocessor: fewer leave memory idle, more have less to skip."""


@dataclass(frozen=True, slots=True)
class Split:
    """The programs of one row."""

    parts: int
    blocks: int
    """Of each part; the last may have fewer."""


def split(rows: int, columns: int, sms: int) -> Split:
    """As many parts as fill the GPU, of whole blocks; none is empty. columns: at least one."""
    blocks = -(-columns // BLOCK)
    wanted = max(1, min(_WAVE * sms // max(rows, 1), blocks, MOST_PARTS))
    each = -(-blocks // wanted)
    return Split(-(-blocks // each), each)
