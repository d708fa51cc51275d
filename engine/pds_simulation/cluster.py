"""Prefill and decode groups in one virtual time, which hand requests over to each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from msgspec.structs import replace
from pds_engine.errors import PdsError
from pds_engine.messages import Message, OpenTransfer, Source, Submit, Welcome
from pds_engine.scheduler.party import Out, Party
from pds_engine.scheduler.settings import Settings

from pds_simulation.events import Events
from pds_simulation.group import ENDPOINT, Group, Machine, ReceivedAnswer
from pds_simulation.transfers import RankPlace, SimulatedTransfers
from pds_simulation.wire import Delay, Line

AGAIN = "+"
"""Ends the name of a request that goes on: each attempt has its own, as the router's have."""


@dataclass(slots=True)
class _Link:
    """A decode scheduler's connection to a prefill scheduler."""

    there: Line
    back: Line
    welcomed: bool = False
    held: list[Message] = field(default_factory=list)
    """Messages to send once the other side has said who it is."""


class Cluster:
    """Any number of groups; requests name the pair that serves them.

    A request that a decode group preempts migrates, with all its tokens, through the same prefill
    group to the next decode group, as the router does it. `copy` is how long a push of pages takes.
    """

    def __init__(self, events: Events, copy: Delay) -> None:
        self.events = events
        self.prefill: list[Group] = []
        self.decode: list[Group] = []
        self._copy = copy
        self._links: dict[tuple[int, int], _Link] = {}
        self._transfers: dict[str, list[SimulatedTransfers]] = {}

    def add(self, settings: Settings, machine: Machine) -> Group:
        """One more group, of the role that `settings` say."""
        groups = self.prefill if settings.role == "prefill" else self.decode
        group = Group(self.events, settings, machine, name=f"{settings.role}-{len(groups)}")
        self.join(group)
        return group

    def join(self, group: Group) -> None:
        """One more group, or dp rank of one; the others know it by its name."""
        settings = group.settings
        groups = self.prefill if settings.role == "prefill" else self.decode
        index = len(groups)
        groups.append(group)
        made = self._transfers[group.name] = []
        for rank, worker in enumerate(group.workers):
            worker.transfers = transfers = SimulatedTransfers(
                self.events,
                RankPlace(rank, worker.shard, settings.parallelism.tp),
                worker.runner,
                self._copy,
                self._receivers,
                partial(group.report, rank),
            )
            made.append(transfers)
        speak = self._answer if settings.role == "prefill" else self._offer
        group.to_peers = partial(speak, index)
        if settings.role == "decode":
            group.migrate = partial(self._migrate, index)

    def submit(self, request: Submit, prefill: int = 0, decode: int = 0, at: float = 0.0) -> None:
        """A client asks a pair: both sides at once, as the router does."""
        source = Source(address=str(prefill), group=self.prefill[prefill].name)
        request = replace(request, since=at if request.since is None else request.since)
        self.prefill[prefill].submit(replace(request, role_hint="prefill"), at)
        self.decode[decode].submit(replace(request, role_hint="decode", source=source), at)

    def run(self) -> list[ReceivedAnswer]:
        """Until nothing happens any more: the answers that the decode groups gave, group by group.

        Raises:
            PdsError: something is left that should not be, on either side.
        """
        self.events.run()
        if faults := self.faults():
            raise PdsError("; ".join(faults))
        return list(chain.from_iterable(group.answers.values() for group in self.decode))

    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        return [fault for group in (*self.prefill, *self.decode) for fault in group.faults()]

    def answer(self, name: str) -> tuple[int, ...]:
        """All tokens that decode groups sent to the client of this request."""
        answers = [each for group in self.decode for each in group.answers.values()]
        mine = [each for each in answers if each.request.request_id.rstrip(AGAIN) == name]
        mine.sort(key=lambda each: len(each.request.request_id))
        return tuple(token for each in mine for token in each.tokens)

    def _migrate(self, decode: int, received: ReceivedAnswer) -> None:
        request, source = received.request, received.request.source
        if source is None:
            raise PdsError(f"{request.request_id} was decoded without a prefill group")
        self.submit(
            replace(
                request,
                request_id=request.request_id + AGAIN,
                output_ids=(*request.output_ids, *received.tokens),
            ),
            int(source.address),
            (decode + 1) % len(self.decode),
            self.events.now,
        )

    # ---- between schedulers --------------------------------------------------------------------

    def _offer(self, decode: int, item: Out) -> None:
        """A decode scheduler says something; the first time, it connects."""
        index = int(item.to.name)
        link = self._links.get((decode, index))
        if link is None:
            control = self.prefill[index].machine.control
            link = _Link(Line(self.events, control), Line(self.events, control))
            self._links[decode, index] = link
            link.there.carry(partial(link.back.carry, partial(self._welcome, decode, index)))
        if link.welcomed:
            self._carry(decode, index, item.message)
        else:
            link.held.append(item.message)

    def _carry(self, decode: int, index: int, message: Message) -> None:
        party = Party("decode", str(decode))
        receive = partial(self.prefill[index].receive, party, message)
        self._links[decode, index].there.carry(receive)

    def _welcome(self, decode: int, index: int) -> None:
        link = self._links[decode, index]
        link.welcomed = True
        party = Party("prefill", str(index))
        self.decode[decode].receive(party, Welcome(incarnation=self.prefill[index].name))
        for message in link.held:
            self._carry(decode, index, message)
        link.held.clear()

    def _answer(self, index: int, item: Out) -> None:
        """A prefill scheduler says something to a decode scheduler."""
        decode = int(item.to.name)
        party = Party("prefill", str(index))
        receive = partial(self.decode[decode].receive, party, item.message)
        self._links[decode, index].back.carry(receive)

    def _receivers(self, order: OpenTransfer) -> Sequence[SimulatedTransfers]:
        """The ranks of the decode group whose endpoints the order has."""
        (name,) = {peer.backends[ENDPOINT].decode() for peer in order.peers}
        (group,) = (group for group in self.decode if group.name == name)
        return self._transfers[group.name]
