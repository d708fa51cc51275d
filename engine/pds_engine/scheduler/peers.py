"""The connections of a decode group's scheduler to prefill groups' schedulers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq

from pds_engine.errors import ProtocolError
from pds_engine.keys import Keys
from pds_engine.messages import AnyMessage, Hello, Message, Welcome
from pds_engine.wire import Link


@dataclass(slots=True)
class _Connection:
    link: Link
    since: float
    held: list[Message] = field(default_factory=list)
    """Messages to send once the peer has said who it is."""
    welcomed: bool = False


class Peers:
    """One Link for each prefill scheduler, made when first needed, closed when lost.

    Nothing but Hello is sent before the peer's Welcome. So it is known which incarnation has got
    what was sent.
    """

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        poller: zmq.Poller,
        keys: Keys,
        hello: Hello,
        patience: float,
    ) -> None:
        self._context = context
        self._poller = poller
        self._keys = keys
        self._hello = hello
        self._patience = patience
        self._peers: dict[str, _Connection] = {}

    def send(self, address: str, message: Message, now: float) -> None:
        """Send to the scheduler at `address` (host:port), or hold until it has welcomed us.

        Raises:
            PeerUnknown: no connection can even be tried.
        """
        peer = self._peers.get(address) or self._connect(address, now)
        if peer.welcomed:
            peer.link.send(message)
        else:
            peer.held.append(message)

    def receive(self) -> Iterator[tuple[str, AnyMessage | None]]:
        """What has come, by address; None: that connection is lost, and closed."""
        for address, peer in list(self._peers.items()):
            try:
                while (message := peer.link.receive()) is not None:
                    yield address, message
                    if isinstance(message, Welcome) and not peer.welcomed:
                        self._release(peer)
            except ProtocolError:
                yield from self._drop(address)
                continue
            if peer.link.lost:
                yield from self._drop(address)

    def expire(self, now: float) -> Iterator[tuple[str, None]]:
        """Give up the connections that nobody has welcomed in the time of a lease."""
        for address, peer in list(self._peers.items()):
            if not peer.welcomed and now - peer.since >= self._patience:
                yield from self._drop(address)

    def close(self) -> None:
        for address in list(self._peers):
            list(self._drop(address))

    def _connect(self, address: str, now: float) -> _Connection:
        peer = _Connection(Link(self._context, f"tcp://{address}", self._keys), now)
        peer.link.send(self._hello)
        self._poller.register(peer.link.socket, zmq.POLLIN)
        self._poller.register(peer.link.monitor, zmq.POLLIN)
        self._peers[address] = peer
        return peer

    @staticmethod
    def _release(peer: _Connection) -> None:
        peer.welcomed = True
        for message in peer.held:
            peer.link.send(message)
        peer.held.clear()

    def _drop(self, address: str) -> Iterator[tuple[str, None]]:
        peer = self._peers.pop(address)
        self._poller.unregister(peer.link.socket)
        self._poller.unregister(peer.link.monitor)
        peer.link.close()
        yield address, None
