"""How long a worker's start takes, by phase: a budget that is logged, and shown in metrics."""

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/self/stat")


def age(stat: str, now: float, ticks: int) -> float:
    """Seconds since a process began, of its proc_pid_stat(5), `now` seconds after the boot."""
    fields = stat.rpartition(")")[2].split()  # its name may have anything in it
    return max(0.0, now - int(fields[19]) / ticks)


def _own_age() -> float:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return age(STAT.read_text(), now, os.sysconf("SC_CLK_TCK"))


class Startup:
    """The phases of one process, which are all of its time from its beginning to Ready.

    import    until the worker's modules are there
    kernels   compiled kernels are found, or compiled, and loaded
    join      until all ranks are there, and have met
    weights   the rank's part of the model
    step      what the largest step takes, where memory decides how many pages there are
    pages     the pool, and what moves pages
    """

    def __init__(
        self, lived: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`lived`: seconds since the process began."""
        self._clock = clock
        self._last = clock()
        self._seconds = {"import": _own_age() if lived is None else lived}

    def reached(self, phase: str) -> None:
        """What was done since the last call was `phase`; it may come again."""
        now = self._clock()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """By phase, in the order in which they came."""
        return tuple((phase, round(taken, 3)) for phase, taken in self._seconds.items())

    def __str__(self) -> str:
        parts = ", ".join(f"{phase} {taken:.2f}" for phase, taken in self.seconds)
        return f"{sum(self._seconds.values()):.2f} s: {parts}"
