"""The scheduler's answers wait here for the task of their HTTP request."""

import asyncio
from collections import deque

from pds_engine.errors import PdsError
from pds_engine.messages import Failed, Token

Arrival = tuple[int, Token | Failed]
SLICE = 64
"""Arrivals that one request handles before others have their turn: a few milliseconds."""


class ClientSlow(PdsError):
    """The client reads so slowly that its answer outgrows its share of memory."""

    code = "client_slow"


class Inbox:
    """A bounded queue from SchedulerClient to one request's task. Its choices share it."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._arrivals: deque[Arrival] = deque()
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    def put(self, choice: int, message: Token | Failed) -> None:
        if len(self._arrivals) >= self._bound:
            self.fail(ClientSlow(f"{self._bound} tokens wait for the client to read"))
            return
        self._arrivals.append((choice, message))
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """Make `take` raise `error` and drop what waits; the first error stands."""
        self._error = self._error or error
        self._arrivals.clear()
        self._ready.set()

    async def take(self) -> list[Arrival]:
        """What came since the last call, at most SLICE; waits while there is nothing.

        Raises:
            ClientGone, ClientSlow, Unavailable: as given to `fail`.
        """
        if self._arrivals:
            await asyncio.sleep(0)  # the wait below returns at once, and gives no task a turn
        await self._ready.wait()
        if self._error is not None:
            raise self._error
        count = min(SLICE, len(self._arrivals))
        arrivals = [self._arrivals.popleft() for _ in range(count)]
        if not self._arrivals:
            self._ready.clear()
        return arrivals
