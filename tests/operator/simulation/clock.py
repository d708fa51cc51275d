"""Virtual time: what happens next, and the one source of chance of a run."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from pds_operator.facts.observed import rfc3339

START = 1_700_000_000.0
TRACE = 400


class Clock:
    """A queue of things to come. Nothing waits: time is what the next of them says it is."""

    def __init__(self, seed: int) -> None:
        self.now = START
        self.random = random.Random(seed)
        self.trace: deque[str] = deque(maxlen=TRACE)
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._text = (-1, "")

    def after(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        """`act(*args)`, `delay` seconds from now."""
        self._count += 1
        heapq.heappush(self._due, (self.now + delay, self._count, act, args))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def chance(self, of: float) -> bool:
        return self.random.random() < of

    def step(self) -> None:
        """The next event."""
        self.now, _, act, args = heapq.heappop(self._due)
        act(*args)

    def text(self, ahead: float = 0.0) -> str:
        """Now, as the API server writes times, or somebody whose clock is ahead of its."""
        second = int(self.now + ahead)
        if self._text[0] != second:
            self._text = (second, rfc3339(second))
        return self._text[1]

    def note(self, text: str) -> None:
        """One line of the trace that a failure prints."""
        self.trace.append(f"{self.now - START:9.3f}  {text}")
