"""What a transfer backend is, and what an endpoint offers.

Whatever the backend, P's rank dials D's rank over an authenticated channel, asks to open the
transfer, and waits for the answer. So D knows who may write into its pages and by what means, and
a killed peer shows as a closed connection within milliseconds, even where the bytes go one-sided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from pds_engine.kv.layout import Run
from pds_engine.kv.transfer.channel import Channel
from pds_engine.kv.transfer.frames import BackendName


class Offer(Struct, frozen=True, array_like=True, kw_only=True):
    """One backend of one endpoint: the value of KvEndpoint.backends."""

    host: str
    port: int
    """Of the channel's listener."""
    instance: bytes
    """Made at every start: a restarted rank at the same address is another one."""
    domain: str = ""
    """Equal on two ranks that can reach each other's memory directly (one host, one namespace)."""
    fabric: tuple[str, ...] = ()
    """What is faster than the host's TCP: "rdma", "cuda"."""
    detail: bytes = b""


class Described(NamedTuple):
    """What a backend puts into its offers, and into Open when it is used."""

    domain: str = ""
    fabric: tuple[str, ...] = ()
    offer: bytes = b""
    open: bytes = b""


_encoder = Encoder()
_decoder: Decoder[Offer] = Decoder(Offer)
encode_offer = _encoder.encode
decode_offer = _decoder.decode


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in seconds and counts; tests shorten them."""

    handshake_seconds: float = 5.0
    """Until a new connection has proved that it holds the key."""
    stall_seconds: float = 20.0
    """Without a byte of progress where one is due, a connection is given up."""
    drain_seconds: float = 2.0
    """What CloseTransfer waits for acknowledgement of what is under way."""
    expect_seconds: float = 60.0
    """How long one who knocks before the Expect is kept waiting."""
    waiting: int = 1024
    """Transfers of one peer that are kept waiting for their Expect."""
    connections: int = 256
    """Accepted ones; more are closed at once."""


class Done(NamedTuple):
    """A write has completed remotely, or (`error`) never will."""

    ticket: int
    error: str | None
    stray: bool = False
    """It failed, and yet its bytes may still arrive: a one-sided write of a broken connection."""


class Route(NamedTuple):
    """A transfer's way to one rank of the peer."""

    transfer: str
    epoch: int
    channel: Channel
    remote: object
    """What `connect` returned."""


class Backend(Protocol):
    """Moves runs of bytes from the own pool into a peer's. Used by the transfer thread alone."""

    name: BackendName

    @property
    def polling(self) -> bool:
        """Whether `poll` must be called again soon, with no event to announce that it is time."""
        ...

    def register(self) -> Described:
        """Make the pool reachable; what peers need to know for it."""
        ...

    def connect(self, channel: Channel, offer: Offer) -> object:
        """The peer that made this offer, for `write`. May be called again for the same peer.

        Raises:
            TransferFailed: it cannot be reached by this backend.
        """
        ...

    def write(self, route: Route, runs: Sequence[Run], ticket: int) -> None:
        """Begin to write; `poll` tells when the bytes are in place and visible there."""
        ...

    def poll(self) -> list[Done]:
        """Writes that have ended since the last call. Never blocks."""
        ...

    def cancel(self, transfer: str) -> None:
        """Post nothing more of it; writes that were not begun end at once."""
        ...

    def lost(self, channel: Channel) -> None:
        """The peer of this channel has gone: no write to it will end."""
        ...

    def close(self) -> None:
        """Let go of everything that was registered."""
        ...
