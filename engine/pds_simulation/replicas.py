"""A group of several dp ranks in virtual time: a Group each, which gather, wake each other, and run
each step together, as the MLP's collectives make them do."""

from collections.abc import Sequence
from functools import partial
from itertools import chain

from pds_engine.errors import PdsError, ProtocolError
from pds_engine.messages import Gather, Gathered, Submit, Wake
from pds_engine.scheduler.party import REPLICAS, SYNC, Out
from pds_engine.scheduler.settings import Settings

from pds_simulation.events import Events
from pds_simulation.group import Group, Machine, ReceivedAnswer, Replica
from pds_simulation.wire import Delay
from pds_simulation.worker import Lockstep


class SyncBus:
    """The schedulers' collectives, and their wake-ups. A collective ends when all have come."""

    def __init__(self, events: Events, dp: int, delay: Delay) -> None:
        self.groups: list[Group] = []
        self.collectives = [0] * dp
        """By dp rank: how many it took part in."""
        self.wakes = 0
        self._events = events
        self._delay = delay
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
                        self._events.after(self._delay(), deliver)
            case _:
                raise ProtocolError(f"{type(out.message).__name__} is not for other dp ranks")

    @property
    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        waiting = [f"dp rank {rank} waits in pass {row[0]}" for rank, row in self._rows.items()]
        if len(set(self.collectives)) > 1:
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
        for group in self.groups:
            deliver = partial(group.receive, SYNC, Gathered(rows=rows))
            self._events.after(self._delay(), deliver)


class DataParallelGroup:
    """One replica of a role with parallelism.dp ranks. A request goes to the dp rank it is given.

    Args:
        sync: how long a row, or a wake-up, takes from one scheduler to another.
    """

    def __init__(self, events: Events, settings: Settings, machine: Machine, sync: Delay) -> None:
        split = settings.parallelism
        self.events = events
        self.bus = SyncBus(events, split.dp, sync)
        stages = [Lockstep(events, split.tp * split.dp) for _ in range(split.pp)]
        self.ranks = [
            Group(events, settings, machine, f"dp{rank}", Replica(rank, stages, self.bus.carry))
            for rank in range(split.dp)
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
        return [*found, *self.bus.faults, *_diverged(self.ranks)]


def _diverged(ranks: Sequence[Group]) -> list[str]:
    """Every step is a step of all dp ranks, of one shape."""
    shapes = [[(plan.step_id, plan.dp_tokens) for plan in group.plans] for group in ranks]
    return [
        f"dp rank {rank} issued {len(other)} steps that differ from rank 0's {len(shapes[0])}"
        for rank, other in enumerate(shapes)
        if other != shapes[0]
    ]
