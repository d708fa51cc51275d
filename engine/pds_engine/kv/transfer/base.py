"""What a transfer backend is, and what an endpoint offers.

Everything in which backends differ is declared here. Only the registry knows which ones there are.

Whatever the backend, P's rank dials D's rank over an authenticated channel, asks to open the
transfer, and waits for the answer. So D knows who may write into its pages and by what means, and
a killed peer shows as a closed connection within milliseconds, even where the bytes go one-sided.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple, Self

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from pds_engine.config import KvBackend
from pds_engine.kv.layout import ByteRun
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.channel import Channel
from pds_engine.ports import KvAddress


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
class TransferLimits:
    """Bounds in seconds and counts; tests shorten them."""

    handshake_seconds: float = 5.0
    """Until a new connection has proved that it holds the key."""
    stall_seconds: float = 20.0
    """Without a byte of progress where one is due, a connection is given up."""
    drain_seconds: float = 2.0
    """How long CloseTransfer waits for the acknowledgement of writes under way."""
    expect_seconds: float = 60.0
    """How long a peer waits that asks to open a transfer before its Expect."""
    waiting: int = 1024
    """Transfers of one peer that are kept waiting for their Expect."""
    connections: int = 256
    """Accepted ones; more are closed at once."""


class WriteResult(NamedTuple):
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


class Way(IntEnum):
    """How the bytes of a pair would go by a backend; the highest is the best.

    The order is measured (benchmarks/handover.py): a socket that reads straight into the pages is
    faster than one-sided writes that are emulated on top of the kernel's TCP.
    """

    EMULATED = 1
    """One-sided writes over the kernel's TCP."""
    STREAM = 2
    """The kernel's TCP, read straight into the pages."""
    DIRECT = 3
    """Past the kernel's TCP: by RDMA, CUDA IPC, or from process to process."""
    COPY = 4
    """The receiver copies out of the sender's memory. A backend of tests alone: it is never offered
    unless it is asked for by name."""


class Backend(ABC):
    """Moves runs of bytes from the own pool into a peer's. Used by the transfer thread alone.

    A rank has one instance for both directions: it writes for P, and answers for D what it takes to
    be written to.
    """

    name: ClassVar[KvBackend]
    one_sided: ClassVar[bool]
    """Whether P's writes land without passing D's receiver, which then can refuse none of them.
    Quarantine rests on it: D's pages are safe from a one-sided writer only when that writer says
    that nothing more comes, or is certainly gone. From any other, D's own Forget fences them.
    """
    shares_pool: ClassVar[bool] = False
    """Whether the own pool must lie in memory that other processes of this host can map."""

    def __init_subclass__(cls) -> None:
        """Raises TypeError: it does not say whether it is `one_sided`. There is no safe default."""
        super().__init_subclass__()
        if not hasattr(cls, "one_sided"):
            raise TypeError(f"{cls.__name__} must say whether its writes are one_sided")

    # ---- before there is a transfer --------------------------------------------------------------

    @classmethod
    @abstractmethod
    def start(cls, pool: KvPool, at: KvAddress) -> Self:
        """Make it ready for this pool. One that listens by itself does so at `at`.

        Raises:
            TransferFailed: it does not work here, so it is not offered.
            PortTaken: another process has its port.
        """

    @staticmethod
    @abstractmethod
    def way(ours: Offer, theirs: Offer) -> Way | None:
        """How bytes would go between those who made these offers; None: not at all. Pure."""

    @abstractmethod
    def register(self) -> Described:
        """Make the pool reachable; what peers need to know for it."""

    # ---- P's half --------------------------------------------------------------------------------

    @abstractmethod
    def connect(self, channel: Channel, offer: Offer) -> object:
        """The peer that made this offer, for `write`. May be called again for the same peer.

        Raises:
            TransferFailed: it cannot be reached by this backend.
        """

    @abstractmethod
    def write(self, route: Route, runs: Sequence[ByteRun], ticket: int) -> None:
        """Begin to write; `poll` returns the ticket once the bytes are in place, visible there."""

    @property
    def polling(self) -> bool:
        """Whether `poll` must be called again soon, with no event to announce that it is time."""
        return False

    @abstractmethod
    def poll(self) -> list[WriteResult]:
        """Writes that have ended since the last call. Never blocks."""

    def refill(self, channel: Channel) -> None:  # noqa: B027
        """The channel has nothing more to send: one that writes through it goes on."""

    def answered(self, ticket: int, error: str | None) -> None:  # noqa: B027
        """The receiver has placed (Ack) or refused (Nack: `error`) the data of `ticket`, which may
        be another backend's."""

    @abstractmethod
    def cancel(self, transfer: str) -> None:
        """Post nothing more of it; writes that were not begun end at once."""

    @abstractmethod
    def lost(self, channel: Channel) -> None:
        """The peer of this channel has gone: no write to it will end."""

    # ---- D's half --------------------------------------------------------------------------------

    def source(self, detail: bytes) -> memoryview | None:
        """P's pages, if the receiver is to copy out of them (frames.Copy); else None.

        `detail` is what P's half sent in Open. It was not checked yet.

        Raises:
            TransferFailed: they cannot be reached.
        """
        return None

    # ---- the end ---------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that was registered."""


class Registered(NamedTuple):
    """A backend whose pool is reachable."""

    backend: Backend
    offer: Offer
    detail: bytes
    """What Open carries when it is used."""


def same_domain(ours: Offer, theirs: Offer) -> bool:
    """Whether the two can reach each other's memory directly."""
    return bool(ours.domain) and ours.domain == theirs.domain
