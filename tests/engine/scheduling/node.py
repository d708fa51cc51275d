"""A scheduler with fake workers, and what must hold of it at every moment.

Fake workers execute plans on fake pages and choose each token from what they read there, so that a
page lost, shared, freed early or written late gives a wrong token.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace
from pds_engine.messages import (
    Admit,
    Cancel,
    Failed,
    KvEndpoint,
    Message,
    Ready,
    StepPlan,
    Submit,
    Token,
)
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import WORKERS, Out, Party
from pds_engine.scheduler.request import Request
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings
from scheduling.workers import NOWHERE, FakeWorker

STOP = 3
SERVER = Party("server", "s")


def check(core: Scheduler) -> None:
    """What must hold of a scheduler at every moment."""
    settings, ledger, flight = core.settings, core.ledger, core.steps.in_flight
    assert len(flight) <= settings.depth
    for issued in flight:
        assert sum(row.length for row in issued.plan.rows) <= settings.step_tokens
        assert len({row.slot for row in issued.plan.rows}) == len(issued.plan.rows)
    check_pages(core)
    promised = sum(r.promised for r in ledger.requests.values())
    assert (ledger.pool.promised, ledger.pool.available >= 0) == (promised, True)
    waiting = [*ledger.queue, *core.prefill.unoffered.values()]
    fresh = [r for r in waiting if r.gen < 0 and not r.submit.output_ids]  # others had a slot once
    assert len(fresh) <= settings.scheduler.max_waiting
    assert all(r.slot >= 0 for r in ledger.allocator.growing)
    if settings.window is None:
        assert not any(r.promised > 1 for r in ledger.allocator.growing)
    most = settings.at_once(settings.pages_for(settings.max_model_len))
    assert all(len(r.pages) <= most and r.promised >= 0 for r in ledger.requests.values())
    ranks = [request.rank for request in ledger.prefilling]
    assert ranks == sorted(ranks)


def check_pages(core: Scheduler) -> None:
    """Every reference has its holder; what others read, or may come to, is not written."""
    ledger, pool, cache = core.ledger, core.ledger.pool, core.ledger.pool.cache
    transfers = [*core.prefill.transfers.values(), *core.prefill.closing.values()]
    requests = {t.request for t in transfers if t.request is not None}
    requests.update(ledger.requests.values(), *ledger._lingering.values())
    held = Counter(page for request in requests for page in request.pages)
    barred = [page for r in core.decode.barred.values() for page in r.pages]
    assert held.keys().isdisjoint(barred)
    held.update(barred)
    for page in range(pool.total):
        assert pool.references(page) == held[page], "a reference without a holder, or none"
        assert pool.is_quarantined(page) == (page in barred)
        assert page not in barred or page not in cache
    for request in requests:
        own = request.pages[max(request.entered - request.dropped, 0) :]
        assert all(held[page] == 1 for page in own), "a page has two holders"
        assert not any(page in cache for page in own)
    assert sorted([*pool._blank, *cache._idle, *held]) == list(range(pool.total))
    assert len(cache) == len(cache._digests)


class Auditor:
    """Watches one scheduler: what it orders, whom it preempts, and what must always hold."""

    def __init__(self, core: Scheduler) -> None:
        self.core = core
        self.tables: dict[tuple[int, int], list[int]] = {}
        """The pages of each slot and generation, as the workers were sent them."""
        core.ledger.preempt = self.preempt  # type: ignore[method-assign]

    def preempt(self, victim: Request) -> None:
        """The last in order of those that may be, never the first of all."""
        ledger = self.core.ledger
        running = [*ledger.prefilling, *ledger.decoding]
        assert victim.rank > min(request.rank for request in running)
        assert victim.rank == max(r.rank for r in running if r in ledger.allocator.growing)
        Ledger.preempt(ledger, victim)

    def order(self, message: Message) -> None:
        if isinstance(message, Admit):
            pages = [NOWHERE] * message.first_page + list(message.pages)
            self.tables[message.slot, message.gen] = pages
        elif isinstance(message, StepPlan):
            for row in message.rows:
                self.tables[row.slot, row.gen] += row.new_pages

    def check(self) -> None:
        check(self.core)
        self.check_writes()
        self.check_reads()

    def check_reads(self) -> None:
        """All that a step in flight reads is held."""
        settings, pool = self.core.settings, self.core.ledger.pool
        for row in (row for issued in self.core.steps.in_flight for row in issued.plan.rows):
            end = settings.pages_for(row.start + row.length)
            for page in self.tables[row.slot, row.gen][settings.behind(row.start) : end]:
                assert page != NOWHERE, "a step reads a page that its slot never had"
                assert pool.references(page), "a step reads a free page"

    def check_writes(self) -> None:
        """No step in flight writes a page that is free, or another's."""
        ledger, size = self.core.ledger, self.core.settings.kv.page_size
        holders = {p: (r.slot, r.gen) for r in ledger.requests.values() for p in r.pages}
        for row in (row for issued in self.core.steps.in_flight for row in issued.plan.rows):
            owner = row.slot, row.gen
            written = slice(row.start // size, -(-(row.start + row.length) // size))
            for page in self.tables[owner][written]:
                assert ledger.pool.references(page), "a step writes a free page"
                assert holders.get(page, owner) == owner, "a step writes another's page"


@dataclass
class Node:
    """A scheduler, its workers, and what its server has received."""

    settings: Settings
    pages: int
    core: Scheduler = field(init=False)
    auditor: Auditor = field(init=False)
    workers: list[FakeWorker] = field(init=False)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    """Output tokens of the requests that have not ended, by id."""
    talks: deque[tuple[int, ...]] = field(default_factory=partial(deque, maxlen=4))
    """Prompt and output of the last that ended."""
    ended: int = 0
    asked: dict[str, Submit] = field(default_factory=dict)
    migrating: list[Submit] = field(default_factory=list)
    """Requests that migrate, with all tokens so far."""
    to_peers: list[Out] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = Scheduler(self.settings, self.settings.role)
        self.auditor = Auditor(self.core)
        window = self.settings.window
        self.workers = [FakeWorker(rank, window=window) for rank in range(self.settings.ranks)]
        for rank in range(self.settings.ranks):
            endpoint = KvEndpoint(rank=rank, shard=b"", pages=self.pages, backends={})
            ready = Ready(rank=rank, pages=self.pages, kv_fingerprint="f", endpoint=endpoint)
            self.handle(WORKERS, ready, 0.0)

    def handle(self, sender: Party, message: Message, now: float) -> None:
        self.take(self.core.handle(sender, message, now))

    def take(self, out: list[Out]) -> None:
        for item in out:
            if item.to == WORKERS:
                self.auditor.order(item.message)
                for worker in self.workers:
                    worker.orders.append(item.message)
            elif item.to == SERVER:
                self.hear(item.message)
            else:
                self.to_peers.append(item)

    def submit(self, message: Submit, now: float) -> None:
        assert message.request_id not in self.outputs
        self.outputs[message.request_id] = list(message.output_ids)
        self.asked[message.request_id] = message
        self.handle(SERVER, message, now)

    def hear(self, message: Message) -> None:
        assert isinstance(message, Token | Failed)
        outputs = self.outputs[message.request_id]  # a KeyError: sent for what had ended
        over = isinstance(message, Failed)
        if isinstance(message, Failed) and message.code == "preempted":
            asked = self.asked[message.request_id]
            assert asked.resumable
            assert outputs, "preempted before its first token"
            self.migrating.append(replace(asked, output_ids=tuple(outputs)))
        if isinstance(message, Token):
            asked = self.asked[message.request_id]
            assert message.index == len(outputs), "a token twice, or one left out"
            assert message.token == self.workers[0].choose([*asked.prompt_ids, *outputs]), (
                "a wrong token"
            )
            outputs.append(message.token)
            stopped = message.token == STOP or len(outputs) == asked.sampling.max_tokens
            assert stopped == (message.finish_reason is not None)
            over = stopped or self.settings.role == "prefill"
        if over:
            self.end(message.request_id)

    def end(self, name: str) -> None:
        self.talks.append(self.asked[name].prompt_ids + tuple(self.outputs.pop(name)))
        self.ended += 1

    def cancel(self, name: str, now: float) -> None:
        self.end(name)
        self.handle(SERVER, Cancel(request_id=name), now)

    def check_idle(self) -> None:
        """What must hold when all has ended."""
        core, state = self.core, self.core.state(0.0)
        assert not self.outputs, f"{sorted(self.outputs)} never ended"
        assert not self.migrating
        transfers = core.prefill.transfers | core.prefill.closing | core.decode.live
        assert (state.in_flight, state.running, transfers) == (0, 0, {})
        assert (state.kv_used, state.kv_quarantined, core.ledger.pool.promised) == (0, 0, 0)
        assert not any(worker.slots or worker.open for worker in self.workers)
        assert not (core.ledger._lingering or core.ledger._finishing or core.ledger.decoding)
