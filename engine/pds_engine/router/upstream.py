"""Persistent HTTP/1.1 connections to one backend, made for relaying streams.

Bytes go from the socket through llhttp (httptools, the parser that uvicorn uses) into the reply's
list, and its reader is poked: no stream reader, timer or task lies between. A connection has one
exchange at a time. benchmarks/router_overhead.py measures it beside an aiohttp client.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import cast

import httptools

from pds_engine.errors import GroupError

HIGH_WATER = 256 << 10
"""Unread bytes of a reply above which its socket is not read: a slow client slows the engine."""
HEAD_BYTES = 64 << 10
"""Bytes of an answer before its body, at the most."""
IDLE_SECONDS = 4.0
"""A connection idle for longer is not used again: uvicorn closes it after 5 seconds."""

Headers = Sequence[tuple[bytes, bytes]]


class BackendLost(GroupError):
    """A backend refused the connection, broke it, fell silent, or does not speak HTTP."""

    code = "backend_lost"


class Reply:
    """A backend's answer so far. `poke` is called whenever there is more of it.

    `status` is 0 until the head has come; `ended` and `error` exclude each other.
    """

    __slots__ = (
        "_connection",
        "_parts",
        "_size",
        "_upstream",
        "ended",
        "error",
        "headers",
        "poke",
        "request",
        "sent",
        "sink",
        "status",
    )

    def __init__(self, upstream: "Upstream", request: bytes, poke: Callable[[], None]) -> None:
        self.request = request
        self.poke = poke
        self.sink: Callable[[bytes], None] | None = None
        """Gets the body as it comes, within the socket's callback; None: it waits for `take`."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.ended = False
        self.error: BackendLost | None = None
        self.sent = False
        """The request went out to the backend, which may have begun with it."""
        self._upstream = upstream
        self._connection: _Connection | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.error is not None

    @property
    def buffered(self) -> int:
        """Bytes of the body that wait to be taken."""
        return self._size

    def take(self) -> bytes:
        """All bytes of the body that have come and were not taken yet."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        self.resume()
        return data

    def pour(self, sink: Callable[[bytes], None]) -> None:
        """Send the body to `sink` from now on, beginning with what waits here."""
        data = self.take()
        self.sink = sink
        if data:
            sink(data)

    def pause(self) -> None:
        """Read no more from the socket for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Its rest is not wanted: an unfinished exchange closes its connection at once."""
        self.poke = _nothing
        self.sink = None
        if not self.over:
            self.fail("closed here")

    def fail(self, message: str) -> None:
        """End it with an error, unless it is over."""
        if self.over:
            return
        self.error = BackendLost(f"{self._upstream.name}: {message}")
        self._detach(reusable=False)
        self.poke()

    # ---- what the connection reports ----

    def attach(self, connection: "_Connection | None") -> None:
        self._connection = connection

    def put(self, data: bytes) -> None:
        if self.sink is not None:
            self.sink(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self.pause()
        self.poke()

    def finish(self, reusable: bool) -> None:
        if self.over:
            return
        self.ended = True
        self._detach(reusable)
        self.poke()

    def _detach(self, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        self._upstream.over(self, connection, reusable)


class Upstream:
    """The connections to one backend."""

    def __init__(self, host: str, port: int, *, connect_timeout: float = 2.0) -> None:
        self.name = f"{host}:{port}"
        self._host = host
        self._port = port
        self._connect_timeout = connect_timeout
        self._idle: list[tuple[_Connection, float]] = []
        self._live: dict[Reply, None] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def request(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        poke: Callable[[], None],
    ) -> Reply:
        """Send a request, at once where a connection is open. Failures show in the reply."""
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {self.name}\r\n".encode("latin-1")]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        reply = Reply(self, b"".join([*lines, body]), poke)
        self._live[reply] = None
        if self._closed:
            asyncio.get_running_loop().call_soon(reply.fail, "the backend is gone")
        elif (connection := self._take_idle()) is not None:
            connection.send(reply, reused=True)
        else:
            self._connect(reply)
        return reply

    def again(self, reply: Reply) -> None:
        """Send it once more, on a new connection: the old one was closed while it was idle."""
        if reply.over:
            return
        self._connect(reply)

    def over(self, reply: Reply, connection: "_Connection | None", reusable: bool) -> None:
        """A reply has ended: its connection is kept or closed."""
        self._live.pop(reply, None)
        if connection is None:
            return
        if reusable and not self._closed and connection.usable:
            self._idle.append((connection, monotonic()))
        else:
            connection.abort()

    def fail_all(self, message: str) -> None:
        """End every open exchange with an error."""
        for reply in list(self._live):
            reply.fail(message)

    def close(self, message: str = "the backend is gone") -> None:
        """End every exchange and connection."""
        self._closed = True
        self.fail_all(message)
        for connection, _ in self._idle:
            connection.abort()
        self._idle.clear()
        for task in self._connecting:
            task.cancel()

    def _take_idle(self) -> "_Connection | None":
        oldest = monotonic() - IDLE_SECONDS
        while self._idle:
            connection, since = self._idle.pop()
            if since >= oldest and connection.usable:
                return connection
            connection.abort()
        return None

    def _connect(self, reply: Reply) -> None:
        task = asyncio.get_running_loop().create_task(self._open(reply))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, reply: Reply) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self.again), self._host, self._port
                )
        except TimeoutError:
            reply.fail(f"no connection within {self._connect_timeout} s")
        except OSError as error:
            reply.fail(f"cannot connect: {error.strerror or error}")
        else:
            if reply.over:
                connection.abort()
            else:
                connection.send(reply, reused=False)


class _Connection(asyncio.Protocol):
    """One connection; the callbacks named on_* are httptools'. `again` resends a request."""

    def __init__(self, again: Callable[[Reply], None]) -> None:
        self._again = again
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reply: Reply | None = None
        self._reused = False
        self._bytes = 0
        self._framed = False
        self._paused = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, reply: Reply, *, reused: bool) -> None:
        self._reply = reply
        self._reused = reused
        self._bytes = 0
        self._framed = False
        self._parser = httptools.HttpResponseParser(self)
        reply.sent = True
        reply.attach(self)
        if self._transport is not None:
            self._transport.write(reply.request)

    def pause(self) -> None:
        if self.usable and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.usable and self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close now, throwing away what was not sent."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()

    # ---- the transport's callbacks ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._parser is None:
            self.abort()  # bytes that nobody asked for
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"does not speak HTTP: {error}")
            return
        if self._reply is not None and not self._reply.status and self._bytes > HEAD_BYTES:
            self._fail(f"its answer has more than {HEAD_BYTES} bytes of headers")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        reply = self._reply
        if reply is None:
            return
        if self._reused and not self._bytes:
            self._reply = None
            reply.attach(None)
            self._again(reply)
        elif reply.status and not self._framed and exc is None:
            self._reply = None
            reply.finish(reusable=False)
        else:
            self._fail(f"connection lost{f': {exc}' if exc else ''}")

    def _fail(self, message: str) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.fail(message)

    # ---- the parser's callbacks ----

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        if self._reply is not None and not self._reply.status:  # no trailers
            self._reply.headers[name] = value

    def on_headers_complete(self) -> None:
        if self._reply is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self._reply.status = status
            self._reply.poke()
        else:
            self._reply.headers.clear()

    def on_body(self, data: bytes) -> None:
        if self._reply is not None:
            self._reply.put(data)

    def on_message_complete(self) -> None:
        reply = self._reply
        if reply is None or not reply.status or self._parser is None:
            return
        self._reply = None
        reply.finish(reusable=self._parser.should_keep_alive())


def _nothing() -> None:
    """The poke of a reply that nobody reads."""
