"""What a worker's watchdog reports to the scheduler: where it stands, and what it waits for."""

from typing import Literal

from msgspec import Struct

from pds_engine.messages.base import Message

Doing = Literal["setup", "idle", "compute", "hidden", "output", "sent"]
"""setup: joining and loading. idle: it has no order. hidden, output: it waits for the previous
stage's hidden states, or for sampled tokens. sent: for the next stage to take what was sent."""


class Traffic(Struct, frozen=True, array_like=True, kw_only=True):
    """Messages between stages since the rank was ready, counted by one rank.

    `outputs_expected` counts the plans that say expects_output: on the first stage it is what was
    or will be received, on the last one what was sent. `outputs_unneeded`, on the first stage:
    those received that no step has read. They are tokens of requests that ended or were cancelled
    meanwhile, and nothing else unless plans send too much.
    """

    rank: int
    steps: int = 0
    hidden_sent: int = 0
    hidden_received: int = 0
    outputs_expected: int = 0
    outputs_sent: int = 0
    outputs_received: int = 0
    outputs_unneeded: int = 0


class Progress(Message, frozen=True, kw_only=True):
    """Worker's watchdog → scheduler, about once a second, from a thread of its own."""

    rank: int
    done: int
    """The last step that it has finished; -1: none."""
    step: int
    """The step that it executes, or executed last; -1: none."""
    doing: Doing
    peer: int
    """The rank that it waits for; -1: none."""
    seconds: float
    """Since it began to do so."""
    mailbox: int
    """Orders that wait for this one."""
    plans: tuple[str, ...]
    """The last plans that it began, oldest first."""
    traffic: Traffic
    compiles: int = 0
    """Kernels that it has compiled since Ready."""
