"""Whole groups to which random things happen, with memory that shows every misplaced page.

Pushes read P's pages when they are carried out and write D's then, as a network card would. Only
one link's messages keep order.
"""

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bounds import bounded
from msgspec.structs import replace
from pds_engine.errors import GroupError
from pds_engine.messages import (
    Message,
    PeerGone,
    PushDone,
    PushFailed,
    Sampling,
    Source,
    StepDone,
    Submit,
    Welcome,
)
from pds_engine.scheduler.party import WORKERS, Party
from scheduling.node import Node
from scheduling.workers import FakeWorker

PAGE, STOP = 4, 3
SERVER, PREFILL = Party("server", "s"), Party("prefill", "p")
BOUNDS: dict[str, Any] = {
    "page_size": PAGE,
    "max_model_len": 40,
    "max_running": 3,
    "max_waiting": 4,
    "chunk_size": 2 * PAGE,
    "max_step_tokens": 2 * PAGE + 3,
    "lease_seconds": 30.0,
    "step_timeout": 1e9,
}


@dataclass(frozen=True)
class Shape:
    """What the groups are, and what may happen to them."""

    pair: bool
    pp: int
    tp: int
    fenced: bool
    """As receivers, they place no byte before Expect and after Forget."""
    mishaps: float
    """How many events in a hundred are a failure of some kind."""
    pages: int = 14
    prompt: int = 26
    output: int = 14
    """The longest prompt, and the most output tokens."""
    resumable: float = 0.0
    """The share of requests with which a router goes on when D preempts them."""


class RandomGroups:
    """One unified group, or a prefill and a decode group; `rng` decides what happens to them."""

    def __init__(self, rng: random.Random, shape: Shape, bounds: Mapping[str, Any]) -> None:
        self.rng = rng
        self.mishaps = shape.mishaps
        self.longest = shape.prompt, shape.output
        self.resumable = shape.resumable
        roles = ("prefill", "decode") if shape.pair else ("unified",)
        chosen = {"pp": shape.pp, "tp": shape.tp, **BOUNDS, **bounds}
        self.nodes = [Node(bounded(role=role, **chosen), shape.pages) for role in roles]
        self.openings = [self.words(rng.randint(1, 16)) for _ in range(2)]
        """What many prompts begin with."""
        self.now = 0.0
        self.count = 0
        self.connection = 0
        self.connected = self.welcomed = False
        self.held: list[Message] = []
        """What D has to say once P has welcomed it."""
        self.to_p: deque[Message] = deque()
        self.to_d: deque[Message] = deque()
        self.buried = 0
        """Epochs up to this one were offered to a pod that has ended."""
        self.unnoticed: deque[Party] = deque()
        """Connections that P has not yet seen end."""
        for worker in self.nodes[-1].workers:
            worker.fenced = shape.fenced

    @property
    def pair(self) -> bool:
        return len(self.nodes) == 2

    @property
    def decode(self) -> Party:
        return Party("decode", str(self.connection))

    def settle(self) -> None:
        """Plan, and put what the schedulers say to each other on their links."""
        self.migrate()
        for node in self.nodes:
            node.take(node.core.plan(self.now))
            out, node.to_peers = node.to_peers, []
            for item in out:
                if item.to == PREFILL:
                    (self.to_p if self.welcomed else self.held).append(item.message)
                elif item.to == self.decode and self.connected:
                    self.to_d.append(item.message)

    def audit(self, node: Node) -> None:
        """What must hold at every moment."""
        node.auditor.check()

    # ---- what can happen -----------------------------------------------------------------------

    def run(self, events: int) -> None:
        """Let so many things happen, and look at everything after each."""
        for _ in range(events):
            chance = self.rng.uniform(0, 100)
            if chance < self.mishaps:
                rare = (
                    self.lose_the_link,
                    self.a_push_fails,
                    self.a_drain_is_given_up,
                    self.a_row_overflows,
                )
                self.rng.choice((self.cancel, self.cancel, self.cancel, *rare))()
            elif chance < self.mishaps + 8:
                self.submit()
            elif chance < self.mishaps + 10:
                self.now += self.rng.choice([0.5, 2.0, 11.0])
                self.tick()
            elif found := self.events():
                self.happen(*self.rng.choice(found))
            for node in self.nodes:
                self.audit(node)

    def end(self) -> None:
        """Left alone, everything ends, and every page and slot comes back."""
        self.quiesce()
        if self.pair:
            self.prefill_is_replaced()
            self.settle()
            self.quiesce()  # what had waited for pages in quarantine
        for node in self.nodes:
            self.audit(node)
            node.check_idle()

    def quiesce(self) -> None:
        """Until leases and deadlines have passed too, of one after the other if need be."""
        for rest in range(200):
            if rest > 8 and not any(node.core.state(self.now).in_flight for node in self.nodes):
                return
            while events := self.events():
                self.happen(*self.rng.choice(events))
            self.now += 11.0
            self.tick()

    def submit(self) -> None:
        self.count += 1
        rng, sides = self.rng, self.nodes
        if rng.random() < 0.05:
            sides = [rng.choice(self.nodes)]
        prompt = self.prompt()[: self.longest[0]]
        deadline = self.now + 20.0 if rng.random() < 0.1 else None
        priority = rng.choice((0, 0, 0, -1, 1))
        max_tokens = rng.randint(1, self.longest[1])
        asked = Submit(
            request_id=f"r{self.count}",
            prompt_ids=prompt,
            sampling=Sampling(max_tokens=max_tokens, stop_token_ids=(STOP,)),
            seed=0,
            priority=priority,
            deadline=deadline,
            since=self.now,
            resumable=self.resumable > 0 and rng.random() < self.resumable,
        )
        self.ask(asked, sides)
        self.settle()

    def ask(self, asked: Submit, sides: Sequence[Node]) -> None:
        for node in sides:
            role = node.settings.role
            source = Source(address="p", group="p") if role == "decode" else None
            node.submit(replace(asked, role_hint=role, source=source), self.now)

    def migrate(self) -> None:
        """What D has preempted comes back through P, by another name, as the router does it."""
        decode = self.nodes[-1]
        while decode.migrating:
            again, decode.migrating = decode.migrating, []
            for asked in again:
                name = asked.request_id
                self.ask(replace(asked, request_id=f"{name}+"), self.nodes)

    def words(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(23) for _ in range(count))

    def prompt(self) -> tuple[int, ...]:
        """Of 1 to 26 tokens: new, with a shared opening, or going on from an earlier answer."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return self.words(self.rng.randint(1, 20))
        if kind == 1 and (talks := self.nodes[-1].talks):
            return (self.rng.choice(talks) + self.words(4))[:26]
        elsewhere = self.words(self.rng.choice((0, 0, 0, PAGE)))  # the same page, another prefix
        return elsewhere + self.rng.choice(self.openings) + self.words(self.rng.randint(0, 6))

    def cancel(self) -> None:
        node = self.rng.choice(self.nodes)
        if node.outputs:
            node.cancel(self.rng.choice(sorted(node.outputs)), self.now)
            self.settle()

    def lose_the_link(self) -> None:
        """D sees it at once, P some time later."""
        if not self.connected:
            return
        self.unnoticed.append(self.decode)
        self.connected = self.welcomed = False
        self.connection += 1
        for lost in (self.to_p, self.to_d, self.held):
            lost.clear()
        decode = self.nodes[1]
        decode.take(decode.core.lost(PREFILL, self.now))
        self.settle()

    def a_push_fails(self) -> None:
        """What the rank has posted may still land."""
        worker = self.rng.choice(self.nodes[0].workers)
        if worker.pushes:
            name = worker.pushes[-1][0].transfer
            worker.reports.append(PushFailed(transfer=name, rank=worker.rank, message="reset"))

    def a_drain_is_given_up(self) -> None:
        self.rng.choice(self.nodes[0].workers).close_drained(give_up=True)

    def a_row_overflows(self) -> None:
        """A result on its way has no token for one of its requests."""
        reports = self.rng.choice(self.nodes).workers[0].reports
        for at, report in enumerate(reports):
            if isinstance(report, StepDone) and report.tokens:
                unsound = (self.rng.randrange(len(report.tokens)),)
                reports[at] = replace(report, unsound=unsound)

    # ---- how it happens --------------------------------------------------------------------------

    def events(self) -> list[tuple[str, int, int]]:
        found = []
        for at, node in enumerate(self.nodes):
            for worker in node.workers:
                for kind, queue in (
                    ("work", worker.orders),
                    ("report", worker.reports),
                    ("push", worker.pushes),
                ):
                    if queue and (kind != "push" or self.is_expected(worker)):
                        found.append((kind, at, worker.rank))
        if self.to_p:
            found.append(("to_p", 0, 0))
        if self.to_d:
            found.append(("to_d", 1, 0))
        if self.held and not self.connected:
            found.append(("connect", 0, 0))
        if self.unnoticed:
            found.append(("notice", 0, 0))
        return found

    def happen(self, kind: str, at: int, rank: int) -> None:
        node = self.nodes[at]
        worker = node.workers[rank]
        if kind == "work":
            worker.work()
        elif kind == "report":
            node.handle(WORKERS, worker.reports.popleft(), self.now)
        elif kind == "push":
            self.push(worker)
        elif kind == "to_p":
            node.handle(self.decode, self.to_p.popleft(), self.now)
        elif kind == "to_d":
            message = self.to_d.popleft()
            node.handle(PREFILL, message, self.now)
            if isinstance(message, Welcome):
                self.welcomed = True
                self.to_p.extend(self.held)
                self.held.clear()
        elif kind == "notice":
            node.take(node.core.lost(self.unnoticed.popleft(), self.now))
        else:
            self.connected = True
            self.to_d.append(Welcome(incarnation="prefill"))
        self.settle()

    def is_expected(self, worker: FakeWorker) -> bool:
        """A fenced receiver lets a writer wait that comes before its Expect."""
        receiver = self.nodes[1].workers[worker.rank]
        push, epoch = worker.pushes[0]
        known = receiver.expected | receiver.forgotten
        return not receiver.fenced or epoch <= self.buried or (push.transfer, epoch) in known

    def push(self, worker: FakeWorker) -> None:
        """Carry one push out: read P's pages and write D's, as they are now."""
        receiver = self.nodes[1].workers[worker.rank]
        push, epoch = worker.pushes.popleft()
        fenced_off = receiver.fenced and (push.transfer, epoch) in receiver.forgotten
        if fenced_off or epoch <= self.buried:
            worker.close_drained()
            if push.transfer in worker.open:
                worker.reports.append(
                    PushFailed(transfer=push.transfer, rank=worker.rank, message="unexpected")
                )
            return
        side = self.nodes[1].core.decode
        live, barred = side.live.get(push.transfer), side.barred.get((push.transfer, epoch))
        if live is not None and live.epoch == epoch:
            allowed = set(live.request.pages[live.request.shared - live.request.dropped :])
        else:
            assert barred is not None, "a write lands after its pages were given back"
            allowed = set(barred.pages)
        assert allowed.issuperset(push.dst_pages), "a write lands in another's page"
        for source, destination in zip(push.src_pages, push.dst_pages, strict=True):
            for offset in range(PAGE):
                receiver.memory[destination, offset] = worker.memory.get((source, offset), -1)
        if push.last and push.transfer in worker.open:
            worker.reports.append(
                PushDone(transfer=push.transfer, rank=worker.rank, bytes=0, seconds=0.0)
            )
        worker.close_drained()

    def tick(self) -> None:
        for node in self.nodes:
            try:
                node.take(node.core.tick(self.now))
            except GroupError:  # too much in quarantine
                self.prefill_is_replaced()
        self.settle()

    def prefill_is_replaced(self) -> None:
        """P's pod has ended: nothing offered to it is written. P goes on as its successor."""
        self.buried = self.nodes[1].core.decode._epoch
        self.nodes[1].handle(SERVER, PeerGone(incarnation="prefill"), self.now)


def random_groups(rng: random.Random, **about: Any) -> RandomGroups:
    """Groups by the names of Shape's fields; all else that is given is a setting."""
    shape = {field.name: about.pop(field.name) for field in fields(Shape) if field.name in about}
    return RandomGroups(rng, Shape(**shape), about)
