"""The scheduler's answers wait here for their HTTP request."""

from collections import deque
from collections.abc import Callable

from pds_engine.errors import PdsError
from pds_engine.messages import Failed, Token

Arrival = tuple[int, Token | Failed]
SLICE = 64
"""Arrivals that one request handles before others have their turn: a few milliseconds."""


class ClientSlow(PdsError):
    """The client reads so slowly that its answer outgrows its share of memory."""

    code = "client_slow"


class Inbox:
    """A bounded queue from SchedulerClient to one request. Its choices share it.

    `notify` is called when something has come where nothing was waiting, once for all that came
    together, and when the request fails.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._arrivals: deque[Arrival] = deque()
        self._error: Exception | None = None
        self.notify: Callable[[], None] = _nobody

    def __len__(self) -> int:
        """How much waits here."""
        return len(self._arrivals)

    @property
    def waiting(self) -> bool:
        """Whether `take` has something to return, or to raise."""
        return bool(self._arrivals) or self._error is not None

    def put(self, choice: int, message: Token | Failed) -> bool:
        """Whether `notify` is due: nothing was waiting."""
        if self._error is not None:
            return False
        if len(self._arrivals) >= self._bound:
            self.fail(ClientSlow(f"{self._bound} tokens wait for the client to read"))
            return False
        self._arrivals.append((choice, message))
        return len(self._arrivals) == 1

    def fail(self, error: Exception) -> None:
        """Make `take` raise `error` and drop what waits; the first error stands."""
        self._error = self._error or error
        self._arrivals.clear()
        self.notify()

    def take(self) -> list[Arrival]:
        """What came since the last call, at most SLICE.

        Raises:
            ClientGone, ClientSlow, Unavailable: as given to `fail`.
        """
        if self._error is not None:
            raise self._error
        arrivals = self._arrivals
        if len(arrivals) <= SLICE:
            taken = list(arrivals)
            arrivals.clear()
            return taken
        return [arrivals.popleft() for _ in range(SLICE)]


def _nobody() -> None:
    """Nobody waits yet: whoever comes looks first."""
