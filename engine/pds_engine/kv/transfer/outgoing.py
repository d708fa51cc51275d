"""What the sender knows of one transfer: the ways to its peers, and what is under way on them."""

from dataclasses import dataclass, field

from pds_engine.kv.layout import Segment
from pds_engine.kv.transfer.base import Backend, Offer, Route
from pds_engine.kv.transfer.channel import Channel
from pds_engine.messages import KvEndpoint, OpenTransfer, Push


@dataclass(slots=True, eq=False)
class Leg:
    """A transfer's way to one rank of the peer that takes bytes from this one."""

    peer: KvEndpoint
    backend: Backend
    offer: Offer
    channel: Channel
    segments: tuple[Segment, ...]
    page_bytes: int
    route: Route | None = None
    """None until the peer has opened the transfer."""
    waiting: list[Push] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Outgoing:
    """One transfer, from OpenTransfer until TransferClosed."""

    order: OpenTransfer
    legs: list[Leg]
    opened: float
    under_way: set[int] = field(default_factory=set)
    """Tickets of writes that have not ended."""
    last: bool = False
    """The last push has been ordered."""
    ended: bool = False
    """PushDone or PushFailed was reported."""
    stray: bool = False
    """A peer went away with writes under way: they may yet arrive."""
    close_by: float | None = None
    closed: bool = False
    """TransferClosed was reported; writes may still be under way if the bound had passed."""
    bytes: int = 0
    busy_since: float = 0.0
    busy: float = 0.0
