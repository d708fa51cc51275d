"""Who is connected to a scheduler, and what each of them may send."""

from dataclasses import dataclass

from pds_engine.messages import (
    Abort,
    AbortAck,
    Bound,
    Cancel,
    Claimed,
    Drain,
    Fault,
    Forgotten,
    Gathered,
    Halt,
    Halted,
    Lives,
    Message,
    PeerGone,
    Progress,
    PushDone,
    PushFailed,
    Queued,
    Ready,
    Refused,
    Relay,
    RelayLost,
    StepDone,
    Submit,
    TransferClosed,
    TransferDone,
    TransferOffer,
    Wake,
    Welcome,
)
from pds_engine.scheduler.party import Kind, Party

MAY_SEND: dict[str, tuple[type[Message], ...]] = {
    "workers": (Ready, StepDone, PushDone, PushFailed, TransferClosed, Forgotten, Fault),
    "watch": (Progress,),
    "server": (Submit, Cancel, Drain, PeerGone, Claimed, Bound),
    "decode": (TransferOffer, Abort),
    "prefill": (Welcome, Queued, Refused, TransferDone, AbortAck),
    "replicas": (Wake, Lives, Halt, Halted, Relay, RelayLost),
    "sync": (Gathered,),
}


@dataclass(frozen=True, slots=True)
class ServedGroup:
    """The group that this scheduler serves."""

    name: str
    incarnation: str
    rendezvous: str
    """host:port, where its ranks meet."""


@dataclass(frozen=True, slots=True)
class Member:
    """Who is behind a connection to our Hub."""

    identity: bytes
    party: Party
    rank: int


KINDS: dict[str, Kind] = {
    "watch": "watch",
    "server": "server",
    "scheduler": "decode",
    "replica": "replicas",
    "sync": "sync",
}
