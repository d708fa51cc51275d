"""A group of several dp ranks in virtual time: a Group each, which gather, wake each other, and run
each step together, as the MLP's collectives make them do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from pds_engine.errors import PdsError, ProtocolError
from pds_engine.messages import Gather, Gathered, Submit, Wake
from pds_engine.scheduler.party import REPLICAS, SYNC, Out
from pds_engine.scheduler.settings import Settings

from pds_simulation.agreement import disagreements
from pds_simulation.events import TRUE, Clock, Events
from pds_simulation.group import Group, Machine, ReceivedAnswer, Replica, instant
from pds_simulation.wire import Delay
from pds_simulation.worker import Lockstep


@dataclass(frozen=True, slots=True)
class Between:
    """What there is between the schedulers of dp ranks."""

    sync: Delay = instant
    """How long a row, or a wake-up, takes from one to another."""
    repeats: int = 1
    """How often each wake-up comes."""
    clocks: Sequence[Clock] = ()
    """Of their machines, by dp rank."""
    pause: Delay = instant
    """How long a scheduler stands still before it takes in the next message."""


class SyncBus:
    """The schedulers' collectives, and their wake-ups. A collective ends when all have come."""

    def __init__(self, events: Events, dp: int, between: Between) -> None:
        self.groups: list[Group] = []
        self.collectives = [0] * dp
        """By dp rank: how many it took part in."""
        self.wakes = 0
        self.passes: list[tuple[int, ...]] = []
        """What each collective brought."""
        self._events = events
        self._between = between
        self._dp = dp
        self._rows: dict[int, tuple[int, ...]] = {}

    def carry(self, dp_rank: int, out: Out) -> None:
        """What a scheduler sends to SYNC or REPLICAS."""
        match out.message:
            case Gather(row=row):
                self._gather(dp_rank, row)
            case Wake() as wake:
                self.wakes += 1
                for other in range(self._dp):
                    if other != dp_rank:
                        deliver = partial(self.groups[other].receive, REPLICAS, wake)
                        for _ in range(self._between.repeats):
                            self._events.after(self._between.sync(), deliver)
            case _:
                raise ProtocolError(f"{type(out.message).__name__} is not for other dp ranks")

    @property
    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        waiting = [f"dp rank {rank} waits in pass {row[0]}" for rank, row in self._rows.items()]
        if set(self.collectives) != {len(self.passes)}:
            waiting.append(f"dp ranks took {self.collectives} collectives")
        return waiting

    def _gather(self, dp_rank: int, row: tuple[int, ...]) -> None:
        if dp_rank in self._rows:
            raise ProtocolError(f"dp rank {dp_rank} enters a pass while it is in one")
        self.collectives[dp_rank] += 1
        self._rows[dp_rank] = row
        if len(self._rows) < self._dp:
            return
        rows = tuple(chain.from_iterable(self._rows[rank] for rank in range(self._dp)))
        self._rows = {}
        self.passes.append(rows)
        for group in self.groups:
            deliver = partial(group.receive, SYNC, Gathered(rows=rows))
            self._events.after(self._between.sync(), deliver)


class DataParallelGroup:
    """One replica of a role with parallelism.dp ranks. A request goes to the rank it is given."""

    def __init__(
        self,
        events: Events,
        settings: Settings,
        machine: Machine,
        between: Between = Between(),
        name: str = "dp",
    ) -> None:
        split = settings.parallelism
        self.events = events
        self.settings = settings
        self.bus = SyncBus(events, split.dp, between)
        stages = [Lockstep(events, split.tp, split.dp) for _ in range(split.pp)]
        clocks = between.clocks or (TRUE,) * split.dp
        self.ranks = [
            Group(
                events,
                settings,
                machine,
                f"{name}{rank}",
                Replica(rank, stages, self.bus.carry, clock, between.pause),
            )
            for rank, clock in enumerate(clocks)
        ]
        self.bus.groups = self.ranks

    def submit(self, request: Submit, dp_rank: int, at: float = 0.0) -> None:
        """A client asks, at that moment, and its request is bound to that dp rank."""
        self.ranks[dp_rank].submit(request, at)

    def run(self) -> list[ReceivedAnswer]:
        """Until nothing happens any more: what all clients received.

        Raises:
            PdsError: something is left that should not be, or dp ranks have diverged.
        """
        self.events.run()
        if faults := self.faults():
            raise PdsError("; ".join(faults))
        return [answer for group in self.ranks for answer in group.answers.values()]

    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        found = [
            f"dp rank {rank}: {fault}"
            for rank, group in enumerate(self.ranks)
            for fault in group.faults()
        ]
        return [*found, *self.disagreements()]

    def disagreements(self) -> list[str]:
        """What is wrong between the dp ranks if nothing more is to happen."""
        schedulers = [group.core for group in self.ranks]
        plans = [group.plans for group in self.ranks]
        found = disagreements(self.settings, self.bus.passes, schedulers, plans)
        return [*self.bus.faults, *found]
