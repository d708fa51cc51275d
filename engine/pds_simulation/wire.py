"""One direction between two ranks: sends and receives meet in order, and take their time."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pds_engine.errors import ProtocolError

from pds_simulation.events import Events, Signal

T = TypeVar("T")
Delay = Callable[[], float]
"""Seconds that the next transfer takes."""


class Line:
    """Messages from one party to another, in order; unbounded, as ZMQ's are here."""

    def __init__(self, events: Events, delay: Delay) -> None:
        self._events = events
        self._delay = delay
        self._last = 0.0

    @property
    def busy(self) -> bool:
        """A message is under way."""
        return self._last > self._events.now

    def carry(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` when the message has come."""
        self._last = max(self._last, self._events.now + self._delay())
        self._events.at(self._last, deliver)


class Wire(Generic[T]):
    """Transfers in order of their posting, each named by its step.

    `rendezvous`: nothing moves before the receive is posted, and until it has moved the sender's
    buffer is read (gloo; NCCL without room for eager sends). Else the send copies its buffer at
    once, and the copy waits for its receive (NCCL's eager sends).
    """

    def __init__(self, events: Events, name: str, delay: Delay, *, rendezvous: bool) -> None:
        self.name = name
        self.sent: list[int] = []
        """The step of every send that was posted, in order."""
        self.received: list[int] = []
        """The step of every receive that was posted, in order."""
        self._events = events
        self._delay = delay
        self._rendezvous = rendezvous
        self._sends: deque[tuple[int, float, Callable[[], T], Signal[None]]] = deque()
        self._receives: deque[tuple[int, Signal[T]]] = deque()
        self._moving = 0
        self._last = 0.0
        """When the last transfer arrives: none overtakes another."""

    def send(self, step: int, read: Callable[[], T]) -> Signal[None]:
        """Answered when what `read` reads may change again."""
        self.sent.append(step)
        left: Signal[None] = Signal(f"its {self.name} of step {step} to leave")
        if not self._rendezvous:
            copy = read()
            self._sends.append((step, self._arrival(), lambda: copy, left))
            left.set()
        else:
            self._sends.append((step, 0.0, read, left))
        self._match()
        return left

    def receive(self, step: int) -> Signal[T]:
        """Answered with what was sent."""
        self.received.append(step)
        came: Signal[T] = Signal(f"{self.name} of step {step}")
        self._receives.append((step, came))
        self._match()
        return came

    @property
    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        return [
            *(f"{self.name} of step {step} was sent, not received" for step, *_ in self._sends),
            *(f"{self.name} of step {step} was never sent" for step, _ in self._receives),
            *([f"{self.name}: {self._moving} under way"] if self._moving else []),
        ]

    def _match(self) -> None:
        while self._sends and self._receives:
            step, arrival, read, left = self._sends.popleft()
            wanted, came = self._receives.popleft()
            if step != wanted:
                raise ProtocolError(f"{self.name}: step {step} is sent, {wanted} is received")
            self._moving += 1
            self._events.at(
                self._arrival() if self._rendezvous else arrival, self._arrive(read, left, came)
            )

    def _arrival(self) -> float:
        self._last = max(self._last, self._events.now + self._delay())
        return self._last

    def _arrive(
        self, read: Callable[[], T], left: Signal[None], came: Signal[T]
    ) -> Callable[[], None]:
        def arrive() -> None:
            self._moving -= 1
            value = read()
            if not left.done:
                left.set()
            came.set(value)

        return arrive
