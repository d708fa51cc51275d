"""What raw JSON holds, counted without a parser."""

import re
from collections.abc import Iterator

SLICE = 16 * 1024
"""Bytes that are searched in one go: between two slices, other threads can have the lock."""
MAX_DIGITS = 256
"""Digits of a number: the time to read and to write one grows with their square."""
_LONG = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_DIGITS = re.compile(rb"[0-9]+")


def long_number(raw: bytes) -> bool:
    """Whether a number of more than MAX_DIGITS digits in a row is in it."""
    return bool(_LONG.search(raw)) and any(map(_LONG.search, _outside(raw)))


def strings(raw: bytes) -> int:
    """How many strings there are at least: an escaped quote is not taken for one."""
    return (raw.count(b'"') - raw.count(b'\\"')) // 2


def values(raw: bytes, *marks: bytes) -> int:
    """How often `marks` occur outside of strings."""
    return sum(piece.count(mark) for piece in _outside(raw) for mark in marks)


def _outside(raw: bytes) -> Iterator[bytes]:
    """The bytes outside of strings, slice by slice. No slice cuts an escape or a number.

    A string that goes from one slice into the next stays open.
    """
    opened, at = False, 0
    while at < len(raw):
        end = at + SLICE
        if digits := _DIGITS.match(raw, end):
            end = digits.end()
        piece = raw[at:end]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            end += 1
            piece = raw[at:end]
        at = end
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b" ".join(parts[opened::2])
        opened ^= len(parts) % 2 == 0
