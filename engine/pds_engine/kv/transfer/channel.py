"""One authenticated TCP connection between two transfer threads: non-blocking, framed, bounded.

Handshake, before a single frame is read (a stranger can neither write nor make us parse):

    listener → dialer   MAGIC, nonce s
    dialer → listener   nonce c, HMAC("dialer", s, c)
    listener → dialer   instance, HMAC("listener", c, s, instance)

The key is the control key's hmac.key. Both sides prove that they hold it, and the dialer learns
that it speaks to that very process which made the endpoint. What is read goes straight to where it
belongs: the reading side is a generator that yields the buffers it wants filled next.
"""

import contextlib
import hashlib
import hmac
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Generator, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol

from pds_engine.errors import ProtocolError
from pds_engine.kv.transfer.frames import (
    HEAD,
    MAX_BODY,
    MAX_DATA,
    AnyFrame,
    decode,
    encode,
)

MAGIC: Final = b"PDSKV\x00\x00\x01"
INSTANCE: Final = 16
"""Bytes that name one start of one rank."""
_NONCE: Final = 32
_MAC: Final = 32
_BUFFERS: Final = 512
"""Of one sendmsg or recvmsg; the kernel takes at most 1,024."""
_TURN: Final = 8 << 20
"""Bytes read before others have their turn: an order to forget waits no longer than that."""
_SCRATCH: Final = memoryview(bytearray(1 << 18))
"""Where bytes go that nobody wants; never read."""

Reading = Generator[Sequence[memoryview], None, None]


class Credentials(NamedTuple):
    """What the two ends of a channel prove to each other."""

    key: bytes
    """The control key's hmac.key: both ends hold it."""
    instance: bytes
    """The start of the rank that listens."""


class ChannelHandler(Protocol):
    """What a channel calls when something happens on it."""

    def on_ready(self, channel: "Channel") -> None:
        """The handshake is done."""

    def on_frame(
        self, channel: "Channel", frame: AnyFrame, data_bytes: int
    ) -> Sequence[memoryview] | None:
        """A frame has come; where its data goes (exactly that many bytes), or None: nowhere."""

    def on_data(self, channel: "Channel", frame: AnyFrame) -> None:
        """All data of that frame has been read."""

    def on_idle(self, channel: "Channel") -> None:
        """All that was queued has been handed to the kernel: send more, if there is more."""

    def on_lost(self, channel: "Channel", reason: str) -> None:
        """The connection is closed. Called once, and not after `close`."""


class Channel:
    """One connection. All calls come from the transfer thread; times are monotonic seconds."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        handler: ChannelHandler,
        selector: selectors.BaseSelector,
        now: float,
    ) -> None:
        self.peer = peer
        self.opened = now
        self.progress = now
        """When a byte last went in or out."""
        self.ready = False
        self.closed = False
        self.unanswered = 0
        """Answers that are due from the other side. The handler counts them."""
        self._sock = sock
        self._handler = handler
        self._selector = selector
        self._out: deque[memoryview] = deque()
        self._reading: Reading | None = None
        self._wanted: list[memoryview] = []
        self._in_frame = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    @classmethod
    def dial(
        cls,
        address: tuple[str, int],
        handler: ChannelHandler,
        selector: selectors.BaseSelector,
        *,
        credentials: Credentials,
        now: float,
    ) -> "Channel":
        """Begin to connect; `on_ready` or `on_lost` follows."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.connect_ex(address)
        channel = cls(sock, f"{address[0]}:{address[1]}", handler, selector, now)
        channel._read_by(channel._as_dialer(*credentials))
        return channel

    @classmethod
    def accept(
        cls,
        sock: socket.socket,
        peer: str,
        handler: ChannelHandler,
        selector: selectors.BaseSelector,
        *,
        credentials: Credentials,
        now: float,
    ) -> "Channel":
        """Greet a peer that has connected; `on_ready` or `on_lost` follows."""
        channel = cls(sock, peer, handler, selector, now)
        channel._read_by(channel._as_listener(*credentials))
        return channel

    @property
    def due(self) -> bool:
        """Whether silence is a fault: bytes to send, half a frame read, or an answer missing."""
        return bool(self._out) or self._in_frame or self.unanswered > 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be handed to the kernel."""
        return not self._out

    def send(self, frame: AnyFrame, data: Sequence[memoryview] = ()) -> None:
        """Queue a frame and its data, which must stay as it is until the other side answers."""
        if not self.closed:
            self._put([memoryview(encode(frame, sum(v.nbytes for v in data))), *data])

    def discard(self) -> None:
        """What is left of the data being read goes nowhere."""
        if self._in_frame:
            self._wanted = _nowhere(sum(view.nbytes for view in self._wanted))

    def handle(self, events: int, now: float) -> None:
        """The socket is ready for `events`: read and write what can be without blocking."""
        for event, action in (
            (selectors.EVENT_READ, self._read),
            (selectors.EVENT_WRITE, self._write),
        ):
            if events & event and not self.closed:
                try:
                    action(now)
                except ProtocolError as error:
                    self.fail(error.message)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    self.fail(error.strerror or str(error))

    def fail(self, reason: str) -> None:
        """Close, and call the handler's `on_lost`."""
        if not self.closed:
            self.close()
            self._handler.on_lost(self, reason)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._selector.unregister(self._sock)
            self._sock.close()
            self._out.clear()
            self._wanted = []

    # ---- bytes -----------------------------------------------------------------------------------

    def _put(self, views: Sequence[memoryview]) -> None:
        if not self.due:
            self.progress = time.monotonic()
        if self._out:
            self._out.extend(views)
            return
        self._out.extend(views)
        if len(views) == 1:  # an answer: it goes at once; pages go when the loop comes round
            with contextlib.suppress(OSError):  # which the loop will meet again
                _drop(self._out, self._sock.send(views[0]))
        if self._out:
            self._selector.modify(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def _write(self, now: float) -> None:
        while True:
            while self._out:
                sent = self._sock.sendmsg(list(islice(self._out, _BUFFERS)))
                self.progress = now
                _drop(self._out, sent)
            if self.ready:
                self._handler.on_idle(self)
            if not self._out:
                break
        if not self.closed:
            self._selector.modify(self._sock, selectors.EVENT_READ, self)

    def _read_by(self, reading: Reading) -> None:
        self._reading = reading
        self._wanted = list(next(reading))

    def _read(self, now: float) -> None:
        left = _TURN
        while left > 0 and not self.closed and self._reading is not None:
            count = self._sock.recvmsg_into(self._wanted[:_BUFFERS])[0]
            if not count:
                raise ProtocolError("closed by the other side")
            self.progress = now
            left -= count
            _cut(self._wanted, count)
            while not self._wanted and not self.closed:
                self._wanted = list(next(self._reading))

    # ---- what is read ----------------------------------------------------------------------------

    def _as_dialer(self, key: bytes, instance: bytes) -> Reading:
        greeting = yield from _exactly(len(MAGIC) + _NONCE)
        if not greeting.startswith(MAGIC):
            raise ProtocolError("does not speak this protocol")
        theirs, ours = greeting[len(MAGIC) :], os.urandom(_NONCE)
        self._put([memoryview(ours + _mac(key, b"dialer", theirs, ours))])
        answer = yield from _exactly(INSTANCE + _MAC)
        if not hmac.compare_digest(
            answer[INSTANCE:], _mac(key, b"listener", ours, theirs, answer[:INSTANCE])
        ):
            raise ProtocolError("does not hold the control key")
        if answer[:INSTANCE] != instance:
            raise ProtocolError("has restarted since it made its offer")
        yield from self._frames()

    def _as_listener(self, key: bytes, instance: bytes) -> Reading:
        ours = os.urandom(_NONCE)
        self._put([memoryview(MAGIC + ours)])
        proof = yield from _exactly(_NONCE + _MAC)
        theirs = proof[:_NONCE]
        if not hmac.compare_digest(proof[_NONCE:], _mac(key, b"dialer", ours, theirs)):
            raise ProtocolError("does not hold the control key")
        self._put([memoryview(instance + _mac(key, b"listener", theirs, ours, instance))])
        yield from self._frames()

    def _frames(self) -> Reading:
        self.ready = True
        self._handler.on_ready(self)
        while True:
            head = yield from _exactly(HEAD.size)
            self._in_frame = True
            body_bytes, data_bytes = HEAD.unpack(head)
            if not 0 < body_bytes <= MAX_BODY or data_bytes > MAX_DATA:
                raise ProtocolError(f"a frame of {body_bytes} bytes and {data_bytes} of data")
            frame = decode((yield from _exactly(body_bytes)))
            places = self._handler.on_frame(self, frame, data_bytes)
            if data_bytes:
                yield _nowhere(data_bytes) if places is None else places
            self._in_frame = False
            self._handler.on_data(self, frame)


def _exactly(count: int) -> Generator[Sequence[memoryview], None, bytes]:
    buffer = bytearray(count)
    yield [memoryview(buffer)]
    return bytes(buffer)


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"pds-kv" + b"".join(parts), hashlib.sha256).digest()


def _nowhere(count: int) -> list[memoryview]:
    whole, rest = divmod(count, len(_SCRATCH))
    return [_SCRATCH] * whole + ([_SCRATCH[:rest]] if rest else [])


def _drop(views: deque[memoryview], count: int) -> None:
    """Take the first `count` bytes off."""
    while count:
        first = views.popleft()
        if first.nbytes > count:
            views.appendleft(first[count:])
            return
        count -= first.nbytes


def _cut(views: list[memoryview], count: int) -> None:
    """Take the first `count` bytes off."""
    done = 0
    for view in views:
        if view.nbytes > count:
            break
        count -= view.nbytes
        done += 1
    del views[:done]
    if count:
        views[0] = views[0][count:]
