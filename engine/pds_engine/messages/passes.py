"""What the schedulers of a group tell each other at dp above 1 (data-parallel.md)."""

from pds_engine.messages.base import Message
from pds_engine.messages.handover import (
    Abort,
    AbortAck,
    Queued,
    Refused,
    TransferDone,
    TransferOffer,
)


class Wake(Message, frozen=True, kw_only=True):
    """A scheduler has work and enters pass `pass_id`: all others, parked since the pass before it,
    are to enter it too. A second one for the same pass does no harm. Where nothing is gathered it
    is dp rank 0's, and a pass is a step."""

    pass_id: int


class Lives(Message, frozen=True, kw_only=True):
    """A dp rank → dp rank 0, where nothing is gathered: whether requests decode there."""

    dp_rank: int
    alive: bool


class Halt(Message, frozen=True, kw_only=True):
    """dp rank 0 → all others, where nothing is gathered: none is alive, issue no step from `before`
    on. Each answers Halted."""

    before: int


class Halted(Message, frozen=True, kw_only=True):
    """The answer to Halt: this dp rank knows."""

    dp_rank: int


class Gather(Message, frozen=True, kw_only=True):
    """Scheduler → whoever gathers for it: this rank's row of a pass (scheduler/dp/rows.py)."""

    row: tuple[int, ...]


class Gathered(Message, frozen=True, kw_only=True):
    """The answer to Gather: the rows of all dp ranks, in order, one after another."""

    rows: tuple[int, ...]
    seconds: float = 0.0
    """From Gather to the last rank's row."""


class Relay(Message, frozen=True, kw_only=True):
    """Between dp rank 0, to whom decode groups are connected, and the dp rank that a request is
    bound to: what the decode scheduler `peer` said to it, or is to be told."""

    peer: str
    message: TransferOffer | Abort | Queued | Refused | TransferDone | AbortAck


class RelayLost(Message, frozen=True, kw_only=True):
    """dp rank 0 → all others: the connection to the decode scheduler `peer` has ended."""

    peer: str
