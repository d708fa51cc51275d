"""What all messages have in common, and the words they share."""

from typing import Literal

from msgspec import Struct

PROTOCOL = 1
"""A Hello of another version is refused by name."""

Role = Literal["prefill", "decode", "unified"]
Peer = Literal["worker", "watch", "server", "scheduler", "replica", "sync"]
"""watch: a worker's second connection, on which its watchdog thread reports. replica: the scheduler
of another dp rank. sync: a worker's thread that gathers rows for its scheduler."""
FinishReason = Literal["stop", "length", "abort"]


class Message(Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """Base of all messages."""
