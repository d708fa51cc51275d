"""Virtual time: what will happen, in order of when; and signals that something has happened."""

import heapq
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from pds_engine.errors import PdsError

T = TypeVar("T")
Action = Callable[[], None]


class Events:
    """Actions to come. Those of one moment happen in the order in which they were put in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._heap: list[tuple[float, int, bool, Action]] = []
        self._count = 0
        self._due = 0
        """Entries that are not periodic."""

    def at(self, when: float, action: Action) -> None:
        self._put(max(when, self.now), False, action)

    def after(self, delay: float, action: Action) -> None:
        self._put(self.now + delay, False, action)

    def every(self, period: float, action: Action) -> None:
        """Again and again, for as long as anything else is to happen."""

        def again() -> None:
            action()
            self._put(self.now + period, True, again)

        self._put(self.now + period, True, again)

    def run(self, until: float = float("inf"), most: int = 50_000_000) -> None:
        """Until nothing but periodic actions is left, or until that moment.

        Raises:
            PdsError: more than `most` actions: something goes on for ever.
        """
        while self._due and self._heap[0][0] <= until:
            self.now, _, periodic, action = heapq.heappop(self._heap)
            self._due -= not periodic
            self.happened += 1
            if self.happened > most:
                raise PdsError(f"the simulation does not end: {most} events up to {self.now} s")
            action()

    def _put(self, when: float, periodic: bool, action: Action) -> None:
        self._count += 1
        self._due += not periodic
        heapq.heappush(self._heap, (when, self._count, periodic, action))


class Clock(NamedTuple):
    """What a machine takes the time to be: so many seconds ahead, and more by `drift` a second."""

    ahead: float = 0.0
    drift: float = 0.0

    def reads(self, now: float) -> float:
        return self.ahead + now * (1 + self.drift)

    def when(self, reading: float) -> float:
        """The moment at which it reads so much, or the next one that it can tell from it."""
        return (reading - self.ahead) / (1 + self.drift) + RESOLUTION * (self != TRUE)


RESOLUTION = 1e-6
TRUE = Clock()
"""Reads the simulation's own time."""


class Signal(Generic[T]):
    """Set once, with a value; at most one waits for it."""

    __slots__ = ("_then", "_value", "about", "done")

    def __init__(self, about: str) -> None:
        self.about = about
        """What is waited for, in words."""
        self.done = False
        self._value: T | None = None
        self._then: Callable[[T | None], None] | None = None

    def set(self, value: T | None = None) -> None:
        self.done = True
        self._value = value
        if self._then is not None:
            self._then(value)

    def then(self, action: Callable[[T | None], None]) -> None:
        """Call `action` with the value: at once if it is there already."""
        if self.done:
            action(self._value)
        else:
            self._then = action
