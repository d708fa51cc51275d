"""A rank's part in hand-overs, on both sides: keys are copied from P's pages into D's."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from pds_engine.errors import ProtocolError
from pds_engine.messages import (
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    Message,
    OpenTransfer,
    Push,
    PushDone,
    StepPlan,
    TransferClosed,
)

from pds_simulation.events import Action, Events
from pds_simulation.runner import SimulatedRunner
from pds_simulation.wire import Delay

Locate = Callable[[OpenTransfer], Sequence["SimulatedTransfers"]]
"""The ranks that a transfer goes to."""


class RankPlace(NamedTuple):
    """Which rank of a group one is."""

    rank: int
    shard: int
    shards: int
    """Ranks of its stage, which all have the same keys here."""


@dataclass(slots=True)
class _Open:
    epoch: int
    peers: Sequence["SimulatedTransfers"]
    under_way: int = 0
    ordered: bool = False
    """Its last push was."""
    closing: bool = False


class SimulatedTransfers:
    """As kv.transfer.TransferThread: posts pushes, receives those that it expects, and no others.

    A copy that comes before its Expect waits for it. A page is read when its copy is placed, so
    that one which P has given away too early arrives wrong.
    """

    def __init__(
        self,
        events: Events,
        place: RankPlace,
        runner: SimulatedRunner,
        delay: Delay,
        locate: Locate,
        report: Callable[[Message], None],
    ) -> None:
        self.rank, self.shard, self.shards = place
        self.runner = runner
        self._events = events
        self._delay = delay
        self._locate = locate
        self._report = report
        self._open: dict[str, _Open] = {}
        self._expected: dict[tuple[str, int], frozenset[int]] = {}
        self._forgotten: set[tuple[str, int]] = set()
        self._early: defaultdict[tuple[str, int], list[Action]] = defaultdict(list)

    @property
    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        left = [*self._open, *(name for name, _ in self._expected)]
        return [f"rank {self.rank} has transfers left: {left}"] if left else []

    def order(self, order: Message) -> None:
        match order:
            case OpenTransfer():
                self._open[order.transfer] = _Open(order.epoch, self._locate(order))
            case CloseTransfer():
                self._open[order.transfer].closing = True
                self._settle(order.transfer)
            case Expect():
                self._expected[order.transfer, order.epoch] = frozenset(order.pages)
                for place in self._early.pop((order.transfer, order.epoch), ()):
                    place()
            case Forget():
                del self._expected[order.transfer, order.epoch]
                self._forgotten.add((order.transfer, order.epoch))
                self._report(
                    Forgotten(
                        transfer=order.transfer, epoch=order.epoch, rank=self.rank, fenced=True
                    )
                )
            case _:
                raise ProtocolError(f"a worker does not take {type(order).__name__}")

    def step_done(self, plan: StepPlan) -> None:
        """The step's pages are complete: push them."""
        for push in plan.pushes:
            transfer = self._open.get(push.transfer)
            if transfer is None or transfer.closing:
                continue
            transfer.ordered |= push.last
            for peer in transfer.peers:
                if peer.takes_from(self):
                    transfer.under_way += 1
                    self._events.after(self._delay(), partial(self._arrive, push, peer))
            self._settle(push.transfer)

    def takes_from(self, source: "SimulatedTransfers") -> bool:
        """Whether this rank's keys come from that rank: every layer from one of its replicas."""
        shared = set(self.runner.layers).intersection(source.runner.layers)
        return self.shard % source.shards == source.shard and bool(shared)

    def place(self, push: Push, epoch: int, source: SimulatedRunner) -> None:
        """A push has come: it is written, or if its transfer is forgotten nothing of it is."""
        expected = self._expected.get((push.transfer, epoch))
        if expected is None:
            return
        if not expected.issuperset(push.dst_pages):
            raise ProtocolError(f"{push.transfer} is pushed to pages that were not offered to it")
        if not all(source.held(page) for page in push.src_pages):
            raise ProtocolError(f"{push.transfer} is pushed from pages that were given back")
        size = self.runner.page_size
        for layer, memory in self.runner.memory.items():
            given = source.memory.get(layer)
            if given is None:
                continue
            for here, there in zip(push.dst_pages, push.src_pages, strict=True):
                memory[here * size : here * size + size] = given[there * size : there * size + size]

    def when_expected(self, transfer: str, epoch: int, action: Action) -> None:
        """Now, or when the Expect has come."""
        key = transfer, epoch
        if key in self._expected or key in self._forgotten:
            action()
        else:
            self._early[key].append(action)

    def _arrive(self, push: Push, peer: "SimulatedTransfers") -> None:
        transfer = self._open[push.transfer]

        def place() -> None:
            peer.place(push, transfer.epoch, self.runner)
            transfer.under_way -= 1
            self._settle(push.transfer)

        peer.when_expected(push.transfer, transfer.epoch, place)

    def _settle(self, name: str) -> None:
        transfer = self._open[name]
        if transfer.under_way:
            return
        if transfer.closing:
            del self._open[name]
            self._report(TransferClosed(transfer=name, rank=self.rank))
        elif transfer.ordered:
            transfer.ordered = False
            self._report(PushDone(transfer=name, rank=self.rank, bytes=0, seconds=0.0))
