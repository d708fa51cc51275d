"""Messages over ZMQ: ROUTER and DEALER with CURVE, MessagePack, and a sequence number on each.

A gap in the numbers means that a message was lost. That raises ProtocolError, and the group
restarts as one: it is never ignored. There is no high-water mark, at which ZMQ would block or drop:
bounds are the application's.

On the wire: [number, message]. A Hub may send an API server several messages under one number, all
that one step has for it: [number, "", messages]. A single empty frame is a probe: receivers skip
it, and a Hub learns whether the peer is there.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import cast

import zmq
from msgspec import DecodeError, ValidationError
from msgspec.msgpack import Decoder, Encoder
from zmq.auth.thread import ThreadAuthenticator

from pds_engine.errors import GroupError, ProtocolError
from pds_engine.keys import Keys
from pds_engine.listening import refusal
from pds_engine.messages import AnyMessage, Message
from pds_engine.ports import CONTROL
from pds_engine.wakeup import Wakeup

_encoder = Encoder()
_decoder: Decoder[AnyMessage] = Decoder(AnyMessage)
_several: Decoder[list[AnyMessage]] = Decoder(list[AnyMessage])
_PROBE = [b""]
_SEVERAL = b""
"""Stands before the frame of several messages."""
# pyzmq's flags are enums, whose operators cost more than the calls that take them.
_MORE, _NO_WAIT, _HAS_MORE = int(zmq.SNDMORE), int(zmq.NOBLOCK), int(zmq.RCVMORE)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
_HEARTBEAT_MS = 5_000
_SILENCE_MS = 15_000
"""A connection that is silent for so long is lost: the other end's machine has gone or stopped."""


def encode(message: Message) -> bytes:
    """`message` as MessagePack.

    Raises:
        Unsendable: a number of more than 64 bits, a lone surrogate, or a value of no known type.
    """
    try:
        return _encoder.encode(message)
    except (OverflowError, TypeError, ValueError, RecursionError) as error:
        name = type(message).__name__
        raise Unsendable(f"no {name} can carry a value of this one: {error}") from error


def decode(frame: bytes) -> AnyMessage:
    """The message of one frame. Raises msgspec's DecodeError or ValidationError."""
    return _decoder.decode(frame)


class PeerUnknown(GroupError):
    """No connection of that identity: the peer has gone."""


class Unsendable(ProtocolError):
    """A message holds what MessagePack cannot: it was not sent, and used no number."""


class Unreadable(ProtocolError):
    """A Hub got what the protocol does not allow. `identity` names the connection."""

    def __init__(self, identity: bytes, cause: ProtocolError) -> None:
        super().__init__(cause.message)
        self.identity = identity


class _Numbers:
    """Both directions' sequence numbers of one connection."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    def pack(self, *messages: Message) -> list[bytes]:
        """One envelope. A message that cannot be encoded uses no number, which its receiver would
        miss, as if the connection were broken.

        Raises:
            Unsendable: the envelope was not made.
        """
        encoded = [encode(messages[0])] if len(messages) == 1 else [_SEVERAL, _together(messages)]
        self.sent += 1
        return [self.sent.to_bytes(8, "big"), *encoded]

    def unpack(self, frames: list[bytes]) -> list[AnyMessage]:
        """The messages of one envelope; none for a probe."""
        if frames == _PROBE:
            return []
        several = len(frames) == 3 and frames[1] == _SEVERAL
        if len(frames) != 2 and not several:
            raise ProtocolError(f"an envelope of {len(frames)} frames is none of this protocol")
        number = int.from_bytes(frames[0], "big")
        self.received += 1
        if number != self.received:
            raise ProtocolError(f"message {number} came where {self.received} was expected")
        try:
            return _several.decode(frames[2]) if several else [decode(frames[1])]
        except (DecodeError, ValidationError) as error:
            raise ProtocolError(f"an unreadable message: {error}") from error


class Authority:
    """Admits `keys.client_public` to a context's CURVE servers. Close it before the context."""

    def __init__(self, context: zmq.Context, keys: Keys) -> None:  # type: ignore[type-arg]
        self._thread = ThreadAuthenticator(context)
        self._thread.start()
        self._thread.configure_curve_callback("*", _Admits(keys.client_public))

    def close(self) -> None:
        self._thread.stop()


class _Admits:
    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return zmq.utils.z85.encode(key) == self._public if len(key) == 32 else key == self._public


class Hub:
    """The bound ROUTER of a scheduler. `identity` names a connection; Hello says whose it is."""

    def __init__(self, context: zmq.Context, address: str, keys: Keys) -> None:  # type: ignore[type-arg]
        self._numbers: dict[bytes, _Numbers] = {}
        self._pending: deque[tuple[bytes, AnyMessage]] = deque()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _unbounded(self.socket)
        self.socket.curve_server = True
        self.socket.curve_secretkey = keys.server_secret
        self.socket.curve_publickey = keys.server_public
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            failed = OSError(error.errno, str(error))
            raise refusal(failed, host, int(port), CONTROL) from error

    @property
    def port(self) -> int:
        endpoint: bytes = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        return int(endpoint.decode().rpartition(":")[2])

    def receive(self) -> tuple[bytes, AnyMessage] | None:
        """The next message and its sender, or None when none is waiting.

        Raises:
            Unreadable: a gap in the sender's numbers, or an unreadable message.
        """
        while not self._pending:
            found = _received(self.socket)
            if found is None:
                return None
            identity, *frames = found
            try:
                messages = self._numbers.setdefault(identity, _Numbers()).unpack(frames)
            except ProtocolError as error:
                raise Unreadable(identity, error) from error
            self._pending.extend((identity, message) for message in messages)
        return self._pending.popleft()

    def send(self, identity: bytes, *messages: Message) -> None:
        """Send the messages in one envelope.

        Raises:
            PeerUnknown: that connection is gone.
            Unsendable: nothing was sent.
        """
        self._put(identity, self._numbers.setdefault(identity, _Numbers()).pack(*messages))

    def probe(self, identity: bytes) -> None:
        """Find out whether the connection is still there.

        Raises:
            PeerUnknown: it is gone.
        """
        self._put(identity, _PROBE)

    def _put(self, identity: bytes, frames: list[bytes]) -> None:
        try:
            _send(self.socket, [identity, *frames])
        except zmq.ZMQError as error:
            self._numbers.pop(identity, None)
            raise PeerUnknown(f"no peer {identity.hex()}: {error}") from error

    def forget(self, identity: bytes) -> None:
        self._numbers.pop(identity, None)

    def close(self) -> None:
        self.socket.close(linger=0)


class Link:
    """A DEALER connected to a Hub, for a process that polls.

    Whoever polls `socket` calls `receive` until it returns None. `monitor` becomes readable when
    the connection is lost; ZMQ would connect anew in silence, but the Hub knows a new connection
    from the old one, so a lost Link is to be closed.
    """

    def __init__(self, context: zmq.Context, address: str, keys: Keys) -> None:  # type: ignore[type-arg]
        self._numbers = _Numbers()
        self._pending: deque[AnyMessage] = deque()
        self._lost = False
        self.socket = context.socket(zmq.DEALER)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            _dealer(self.socket, address, keys)
        except zmq.ZMQError as error:
            self.close()
            raise PeerUnknown(f"cannot connect to {address}: {error}") from error

    @property
    def lost(self) -> bool:
        """The connection was there, and is not any more."""
        self._lost = self._lost or self.monitor.poll(0) != 0
        return self._lost

    def send(self, message: Message) -> None:
        """Raises Unsendable when nothing was sent."""
        _send(self.socket, self._numbers.pack(message))

    def receive(self, timeout: float | None = 0) -> AnyMessage | None:
        """The next message, or None after `timeout` seconds without one (None: wait for ever)."""
        patience = None if timeout is None else round(timeout * 1000)
        while not self._pending:
            frames = _received(self.socket)
            if frames is not None:
                self._pending.extend(self._numbers.unpack(frames))
            elif patience == 0 or not self.socket.poll(patience):
                return None
        return self._pending.popleft()

    def close(self, linger_ms: int = 0) -> None:
        """Safe to repeat. What was sent may take `linger_ms` to leave after this."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)


class AsyncLink:
    """A DEALER connected to a Hub, for asyncio: to be made in a running loop.

    It watches the socket's descriptor by itself. zmq.asyncio makes futures and timers for every
    message, which cost more than all else that a token needs here.
    """

    def __init__(self, context: zmq.Context, address: str, keys: Keys) -> None:  # type: ignore[type-arg]
        self._numbers = _Numbers()
        self._pending: deque[AnyMessage] = deque()
        self._socket = context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        _dealer(self._socket, address, keys)
        self._came, self._ended = Wakeup(), Wakeup()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(_descriptor(self._socket), self._came.set)
        self._loop.add_reader(_descriptor(self._monitor), self._ended.set)

    async def send(self, message: Message) -> None:
        """Raises Unsendable when nothing was sent."""
        _send(self._socket, self._numbers.pack(message))
        # Sending takes in what the descriptor has told: it may not tell it again.
        self._came.set()

    async def receive(self) -> AnyMessage:
        while (message := self.waiting()) is None:
            await self._came.wait()
        return message

    def waiting(self) -> AnyMessage | None:
        """The next message, if it is there already."""
        while not self._pending:
            frames = _received(self._socket)
            if frames is None:
                return None
            self._pending.extend(self._numbers.unpack(frames))
        return self._pending.popleft()

    async def lost(self) -> None:
        """Return once a connection that stood has ended: its peer died, hangs, or was cut off."""
        while _received(self._monitor) is None:
            await self._ended.wait()

    def close(self) -> None:
        """Safe to repeat."""
        if self._socket.closed:
            return
        for socket in (self._socket, self._monitor):
            self._loop.remove_reader(_descriptor(socket))
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


def _received(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The frames of the next envelope; None when none is waiting. (An exception for that would cost
    as much as an envelope.)"""
    if not cast(int, socket.get(_EVENTS)) & _READABLE:
        return None
    frames = [socket.recv(_NO_WAIT)]
    while socket.get(_HAS_MORE):
        frames.append(socket.recv(_NO_WAIT))
    return frames


def _send(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    for frame in frames[:-1]:
        socket.send(frame, _MORE)
    socket.send(frames[-1])


def _together(messages: Sequence[Message]) -> bytes:
    """Several messages in one frame. Raises Unsendable."""
    try:
        return _encoder.encode(messages)
    except (OverflowError, TypeError, ValueError, RecursionError):
        for message in messages:
            encode(message)  # whichever it is says so
        raise


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return cast(int, socket.get(zmq.FD))


def _dealer(socket: zmq.Socket[bytes], address: str, keys: Keys) -> None:
    _unbounded(socket)
    socket.curve_serverkey = keys.server_public
    socket.curve_secretkey = keys.client_secret
    socket.curve_publickey = keys.client_public
    socket.connect(address)


def _unbounded(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
