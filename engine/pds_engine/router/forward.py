"""Sends a stream's events to the client from within the callback of the engine's socket.

Waking a task for each event would cost a turn of the loop, and so a system call, beside the writing
itself: benchmarks/router_overhead.py.
"""

from collections import deque
from collections.abc import Callable

from pds_engine.router.answers import Send
from pds_engine.router.sse import EventReader
from pds_engine.suspended import Suspended, begun


class Forward:
    """`push` takes what an engine sends.

    Where the client is slow, `pause` is called, events are held here, and `poke` asks the relay's
    task to `flush`.
    """

    __slots__ = ("_send", "_suspended", "_waiting", "events", "pause", "poke")

    def __init__(self, send: Send, poke: Callable[[], None]) -> None:
        self._send = send
        self._suspended: Suspended | None = None
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
        self._suspended = begun(sending)
        if self._suspended is not None:
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
