"""Messages over ZMQ: ROUTER and DEALER with CURVE, MessagePack, and a sequence number on each.

A gap in the numbers means that a message was lost, which the design never survives in silence: it
raises ProtocolError, and the group restarts as one. There is no high-water mark (ZMQ would block or
drop); bounds are the application's.
"""

import zmq
import zmq.asyncio
from msgspec import DecodeError, ValidationError
from msgspec.msgpack import Decoder, Encoder
from zmq.auth.thread import ThreadAuthenticator

from pds_engine.errors import GroupError, ProtocolError
from pds_engine.keys import Keys
from pds_engine.messages import AnyMessage, Message

_encoder = Encoder()
_decoder: Decoder[AnyMessage] = Decoder(AnyMessage)


class PeerUnknown(GroupError):
    """No connection of that identity: the peer has gone."""


class _Numbers:
    """Both directions' sequence numbers of one connection."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    def pack(self, message: Message) -> list[bytes]:
        self.sent += 1
        return [self.sent.to_bytes(8, "big"), _encoder.encode(message)]

    def unpack(self, frames: list[bytes]) -> AnyMessage:
        if len(frames) != 2:
            raise ProtocolError(f"a message of {len(frames)} frames, 2 were expected")
        number = int.from_bytes(frames[0], "big")
        self.received += 1
        if number != self.received:
            raise ProtocolError(f"message {number} came where {self.received} was expected")
        try:
            return _decoder.decode(frames[1])
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
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _unbounded(self.socket)
        self.socket.curve_server = True
        self.socket.curve_secretkey = keys.server_secret
        self.socket.curve_publickey = keys.server_public
        self.socket.bind(address)

    @property
    def port(self) -> int:
        endpoint: bytes = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        return int(endpoint.decode().rpartition(":")[2])

    def receive(self) -> tuple[bytes, AnyMessage] | None:
        """The next message and its sender, or None when none is waiting.

        Raises:
            ProtocolError: a gap in the sender's numbers, or an unreadable message.
        """
        try:
            identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return identity, self._numbers.setdefault(identity, _Numbers()).unpack(frames)

    def send(self, identity: bytes, message: Message) -> None:
        """Raises PeerUnknown when that connection is gone."""
        frames = self._numbers.setdefault(identity, _Numbers()).pack(message)
        try:
            self.socket.send_multipart([identity, *frames])
        except zmq.ZMQError as error:
            self._numbers.pop(identity, None)
            raise PeerUnknown(f"no peer {identity!r}: {error}") from error

    def forget(self, identity: bytes) -> None:
        self._numbers.pop(identity, None)

    def close(self) -> None:
        self.socket.close(linger=0)


class Link:
    """A DEALER connected to a Hub, for a process that polls."""

    def __init__(self, context: zmq.Context, address: str, keys: Keys) -> None:  # type: ignore[type-arg]
        self._numbers = _Numbers()
        self.socket = context.socket(zmq.DEALER)
        _dealer(self.socket, address, keys)

    def send(self, message: Message) -> None:
        self.socket.send_multipart(self._numbers.pack(message))

    def receive(self, timeout: float | None = 0) -> AnyMessage | None:
        """The next message, or None after `timeout` seconds (None: wait for ever)."""
        if not self.socket.poll(None if timeout is None else round(timeout * 1000)):
            return None
        return self._numbers.unpack(self.socket.recv_multipart())

    def close(self) -> None:
        self.socket.close(linger=0)


class AsyncLink:
    """A DEALER connected to a Hub, for asyncio."""

    def __init__(self, context: zmq.asyncio.Context, address: str, keys: Keys) -> None:
        self._numbers = _Numbers()
        self._socket = context.socket(zmq.DEALER)
        _dealer(self._socket, address, keys)

    async def send(self, message: Message) -> None:
        await self._socket.send_multipart(self._numbers.pack(message))

    async def receive(self) -> AnyMessage:
        return self._numbers.unpack(await self._socket.recv_multipart())

    async def lost(self) -> None:
        """Return once a connection that stood has ended: its peer died, hangs, or was cut off."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            await monitor.recv_multipart()
        finally:
            self._socket.disable_monitor()

    def close(self) -> None:
        self._socket.close(linger=0)


def _dealer(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, address: str, keys: Keys) -> None:
    _unbounded(socket)
    socket.curve_serverkey = keys.server_public
    socket.curve_secretkey = keys.client_secret
    socket.curve_publickey = keys.client_public
    # A peer that is stopped keeps its TCP connection: only a missing heartbeat tells.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
    socket.connect(address)


def _unbounded(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
