"""What benchmarks share: where the tree is, and saying what a run waits for.

    python benchmarks/NAME.py

Importing this puts the folders on the path that are not installed: pds_cluster, and what the tests
on a cluster are made of.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "cluster"), str(ROOT / "tests" / "cluster")]


def say(text: str) -> None:
    """On stderr, at once: the figures alone are on stdout."""
    print(text, file=sys.stderr, flush=True)


def end_on_sigterm() -> None:
    """As on Ctrl-C: what the run has started ends with it."""

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit("error: ended by SIGTERM")

    signal.signal(signal.SIGTERM, ended)


@contextmanager
def doing(what: str, seconds: float) -> Iterator[None]:
    """Say what begins, and end the run with a reason when it is not done in `seconds`.

    Of several around each other, the first to be due ends the run. For the main thread alone.
    """
    say(f"{what} (at most {seconds:g} s)")
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    if left and left < seconds:
        yield
        return

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(f"error: {what}: not done in {seconds:g} s")

    before, begun = signal.signal(signal.SIGALRM, late), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        rest = max(0.001, left - (time.monotonic() - begun)) if left else 0.0
        signal.setitimer(signal.ITIMER_REAL, rest)
