"""Sends a stream's events to the client from within the callback of the engine's socket.

Waking a task for each event would cost a turn of the loop, and so a system call, beside the writing
itself: benchmarks/router_overhead.py.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from pds_engine.router.answers import Send
from pds_engine.router.sse import EventReader


class Forward:
    """`push` takes what an engine sends.

    Where the client is slow, `pause` is called, events are held here, and `poke` asks the relay's
    task to `flush`.
    """

    __slots__ = ("_send", "_suspended", "_waiting", "events", "pause", "poke")

    def __init__(self, send: Send, poke: Callable[[], None]) -> None:
        self._send = send
        self._suspended: _Suspended | None = None
        self._waiting: deque[bytes] = deque()
        self.events = EventReader()
        self.poke = poke
        self.pause: Callable[[], None] = poke

    @property
    def held(self) -> bool:
        """Events wait here because the client reads too slowly."""
        return self._suspended is not None

    def push(self, data: bytes) -> None:
        """Bytes of the stream, as they come."""
        whole = self.events.feed(data)
        if not whole:
            return
        if self._suspended is not None:
            self._waiting.append(whole)
            return
        sending = self._send({"type": "http.response.body", "body": whole, "more_body": True})
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return  # the usual case: written without waiting
        self._suspended = _Suspended(sending, waits_for)
        self.pause()
        self.poke()

    async def flush(self) -> None:
        """Send what is held, at the client's own pace."""
        if self._suspended is not None:
            await self._suspended
        while self._waiting:
            body = self._waiting.popleft()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._suspended = None


class _Suspended:
    """A coroutine that began outside any task and now waits; awaiting this continues it."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(value)
            except StopIteration:
                return
