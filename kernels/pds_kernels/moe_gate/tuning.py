"""How a gate's work is cut."""

TOKENS = 4
"""Tokens of a program, a warp each: their reductions stay within a warp."""
WARPS = 4
WIDEST = 1024
"""Places of a token: 32 numbers a thread, with scores and keys side by side."""


def padded(experts: int, groups: int) -> tuple[int, int]:
    """Groups and places of a group, each a power of two."""
    return _power(groups), _power(-(-experts // groups))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
