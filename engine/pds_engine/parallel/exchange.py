"""The real transfers between stages: torch.distributed, gloo or NCCL (pipeline.md).

Both ends act on the same plan: who sends, who receives, how many rows, and the tag. A receive is
posted when its plan is known and the step before it begins to compute, never while idle; on NCCL
after that computation, where it does not spin beside it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pds_engine.config import ParallelConfig
from pds_engine.errors import ProtocolError, RankLost
from pds_engine.messages import Doing, StepPlan, Traffic
from pds_engine.parallel.groups import Groups
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.parts import part_tokens
from pds_engine.parallel.stage import BUFFERS

A = TypeVar("A", covariant=True)

TAGS = 1 << 15
"""Tags come round after so many steps: far more than can be under way."""
INVALID = -1
"""Fills an output without tokens, which is only sent with skip_output off."""


@dataclass(frozen=True, slots=True)
class Waiting(Generic[A]):
    """A transfer under way. `peer` is the other end's rank."""

    doing: Doing
    peer: int
    step: int
    numbering: Numbering
    buffer: Tensor
    """Not to be used before `wait` has returned."""
    work: dist.Work
    result: Callable[[Tensor], A]

    def wait(self) -> A:
        """Block until it is done; what was received, or None for what was sent.

        Raises:
            RankLost: the connection to the peer is gone.
        """
        try:
            self.work.wait()
        except RuntimeError as error:
            raise RankLost(
                f"{self.numbering.name(self.peer)} is lost, at step {self.step}: {error}"
            ) from error
        return self.result(self.buffer)


@dataclass(slots=True)
class TrafficCounts:
    """Messages so far; the worker's own thread counts, its watchdog reads."""

    rank: int
    steps: int = 0
    hidden_sent: int = 0
    hidden_received: int = 0
    outputs_expected: int = 0
    outputs_sent: int = 0
    outputs_received: int = 0

    def traffic(self, unneeded: int) -> Traffic:
        """`unneeded`: outputs that the runner has not read."""
        return Traffic(**asdict(self), outputs_unneeded=unneeded)


@dataclass(slots=True)
class DistributedExchange:
    """One rank's transfers with its neighbours. Hidden states are [rows, width] of `dtype`.

    Args:
        rows: the most tokens of a step that one rank holds between layers, padding included.
    """

    groups: Groups
    split: ParallelConfig
    rank: int
    rows: int
    width: int
    dtype: torch.dtype
    device: torch.device
    counts: TrafficCounts = field(init=False)
    _numbering: Numbering = field(init=False)
    _arrivals: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = TrafficCounts(self.rank)
        self._numbering = Numbering.of(self.split)
        buffers = BUFFERS if self.rank >= self.split.width else 0
        shape = (self.rows, self.width)
        self._arrivals = tuple(
            torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(buffers)
        )

    def receive_hidden(self, plan: StepPlan) -> Waiting[Tensor]:
        """From the same place of the stage before: this rank's part of the step, [rows, width]."""
        rows = part_tokens(plan, self.split.tp)
        if rows > self.rows:
            raise ProtocolError(
                f"step {plan.step_id} has {rows} tokens a rank, {self.rows} is the most"
            )
        buffer = self._arrivals[plan.step_id % BUFFERS][:rows]
        peer = self.rank - self.split.width
        work = dist.irecv(buffer, peer, self.groups.hidden, plan.step_id % TAGS)
        self.counts.hidden_received += 1
        return self._waiting("hidden", peer, plan, buffer, work, _itself)

    def send_hidden(self, plan: StepPlan, hidden: Tensor) -> Waiting[None]:
        """To the same place of the next stage. `hidden` is kept until it is sent."""
        if hidden.shape != (part_tokens(plan, self.split.tp), self.width):
            raise ProtocolError(
                f"step {plan.step_id} has hidden states of shape {tuple(hidden.shape)}"
            )
        peer = self.rank + self.split.width
        buffer = hidden.contiguous()
        work = dist.isend(buffer, peer, self.groups.hidden, plan.step_id % TAGS)
        self.counts.hidden_sent += 1
        return self._waiting("sent", peer, plan, buffer, work, _nothing)

    def receive_output(self, plan: StepPlan) -> Waiting[tuple[int, ...]]:
        """From the same place of the last stage: a token for each sampling row."""
        wanted = sum(row.samples for row in plan.rows)
        buffer = torch.full((max(1, wanted),), INVALID)
        peer = self.rank + self.split.ranks - self.split.width
        work = dist.irecv(buffer, peer, self.groups.output, plan.step_id % TAGS)
        self.counts.outputs_received += 1

        def tokens(buffer: Tensor) -> tuple[int, ...]:
            found = tuple(buffer.tolist())
            if (INVALID in found) != (not wanted):
                raise ProtocolError(f"step {plan.step_id} samples {wanted} rows, got {found}")
            return found if wanted else ()

        return self._waiting("output", peer, plan, buffer, work, tokens)

    def send_output(self, plan: StepPlan, tokens: tuple[int, ...]) -> Waiting[None]:
        """To the same place of the first stage; without tokens a buffer that is marked invalid."""
        buffer = torch.tensor(tokens or (INVALID,), dtype=torch.int64)
        peer = self.rank - (self.split.ranks - self.split.width)
        work = dist.isend(buffer, peer, self.groups.output, plan.step_id % TAGS)
        self.counts.outputs_sent += 1
        return self._waiting("sent", peer, plan, buffer, work, _nothing)

    def _waiting(
        self,
        doing: Doing,
        peer: int,
        plan: StepPlan,
        buffer: Tensor,
        work: dist.Work | None,
        result: Callable[[Tensor], A],
    ) -> Waiting[A]:
        if work is None:
            raise ProtocolError(f"{self._numbering.name(self.rank)} is not of that group")
        return Waiting(doing, peer, plan.step_id, self._numbering, buffer, work, result)


def _itself(buffer: Tensor) -> Tensor:
    return buffer


def _nothing(buffer: Tensor) -> None:
    return None
