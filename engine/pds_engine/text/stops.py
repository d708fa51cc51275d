"""Stop strings across the borders of tokens: text that may begin one is held back."""

from collections.abc import Sequence
from typing import NamedTuple


class Scan(NamedTuple):
    """What a piece of text comes to: `release` may be sent, `held` may begin a stop string."""

    release: str
    held: str
    matched: str | None
    """The stop string found; `release` then ends before it, and nothing is held."""


def scan(text: str, stops: Sequence[str]) -> Scan:
    """Look for the first of `stops` in `text`, which is what was held before plus what is new."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        at, stop = min(found, key=lambda pair: pair[0])
        return Scan(text[:at], "", stop)
    keep = max((_overlap(text, stop) for stop in stops), default=0)
    cut = len(text) - keep
    return Scan(text[:cut], text[cut:], None)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
