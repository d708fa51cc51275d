"""dp ranks in virtual time: a trace goes in, and what its clients saw comes out.

Each rank admits requests in order while it has slots and pages for them, and proposes slices of
their prompts, in order; a policy says on which ranks they run; all ranks advance together by what
the pass costs. Nothing here is random, and nothing takes real time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from pds_engine.scheduler.dp.price import Price
from pds_engine.scheduler.dp.rows import SyncRow

from delaying.costs import Load, Machine

PACE = 0.001
"""Seconds of a pass in which no rank computes anything: what ranks tell each other, no step."""


@dataclass(slots=True)
class Request:
    """One request of a trace; times in seconds."""

    arrival: float
    prompt: int
    output: int
    rank: int | None = None
    """The rank that it is for; None: that with the fewest outstanding tokens."""
    computed: int = 0
    first: float = 0.0


class Trace(NamedTuple):
    """Requests as clients send them."""

    requests: Sequence[Request]
    clients: int | None = None
    """So many at once, each sends its next request when one is answered (arrivals are ignored, and
    so are the waits of the first: they are a burst)."""


class View(NamedTuple):
    """What a policy may know of a rank before a pass."""

    row: SyncRow
    prompts: int
    """Requests whose prompts are in the proposal."""
    waiting: int
    """Requests of whose prompts nothing is computed, nor is in this pass."""
    usage: float
    """Share of the pages that is taken."""
    slots: int
    chunk: int


Policy = Callable[[Sequence[View]], Sequence[bool]]
"""Given all ranks, once a pass: which of them run their prompts in it."""


@dataclass(slots=True)
class Rank:
    machine: Machine
    price: Price
    """What passes have taken; all ranks measure the same."""
    waiting: deque[Request] = field(default_factory=deque)
    prefilling: deque[Request] = field(default_factory=deque)
    decoding: list[tuple[int, int, Request]] = field(default_factory=list)
    """A heap, by the decode step after which each is done."""
    steps: int = 0
    context: int = 0
    held: int = 0
    """Tokens of KV that requests with a slot have, or will."""
    pending: int = 0
    outstanding: int = 0
    last: float = 0.0
    """When the rank's requests got their last tokens …"""
    fresh: list[float] = field(default_factory=list)
    """… and when those did that have begun since."""
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    """The proposal."""
    count: int = 0

    def place(self, request: Request) -> None:
        self.waiting.append(request)
        self.pending += request.prompt
        self.outstanding += request.prompt + request.output

    def propose(self, pass_id: int, underused: float = 0.2) -> View:
        """Admit who can be, and cut slices of their prompts."""
        machine, waiting, prefilling = self.machine, self.waiting, self.prefilling
        while waiting and len(prefilling) + len(self.decoding) < machine.slots:
            need = waiting[0].prompt + waiting[0].output
            if self.held + need > machine.kv and (prefilling or self.decoding):
                break
            self.held += need
            prefilling.append(waiting.popleft())
        rows = len(self.decoding)
        room = machine.chunk - (0 if machine.separate else rows)
        chunks: list[tuple[Request, int]] = []
        total = 0
        for request in prefilling:
            length = min(request.prompt - request.computed, room - total)
            if length <= 0:
                break
            chunks.append((request, length))
            total += length
        self.chunks = chunks
        begun = bool(prefilling) and prefilling[0].computed > 0
        cut, queued = len(chunks) < len(prefilling), bool(waiting)
        usage = self.held / machine.kv
        low = total > 0 and max(usage, (rows + len(prefilling)) / machine.slots) < underused
        row = SyncRow(
            pass_id,
            decode_tokens=rows,
            prompt_tokens=total,
            pending_tokens=self.pending,
            running=rows,
            begun=begun,
            kv_low=low,
            cut=cut,
            queued=queued,
            price=self.price.of(total),
            fixed=self.price.fixed,
        )
        unserved = len(waiting) + len(prefilling) - len(chunks)
        return View(row, len(chunks), unserved, usage, machine.slots, machine.chunk)

    def load(self, runs: bool) -> Load:
        """What the rank computes in the pass."""
        rows, context = len(self.decoding), self.context
        if not runs or not self.chunks:
            return Load(rows, context)
        tokens, pairs = 0, 0.0
        for request, length in self.chunks:
            tokens += length
            pairs += length * (request.computed + length / 2)
        if self.machine.separate:
            rows = context = 0
        return Load(rows, context, tokens, pairs)

    def advance(self, load: Load, end: float, outcome: "Outcome") -> list[Request]:
        """The pass is done; the requests that it ends."""
        done: list[Request] = []
        if load.rows:
            old = load.rows - len(self.fresh)
            if old:
                outcome.gaps.append((end - self.last, old))
            outcome.gaps += [(end - since, 1) for since in self.fresh]
            self.fresh.clear()
            self.last = end
            self.steps += 1
            self.context += load.rows
            self.outstanding -= load.rows
            while self.decoding and self.decoding[0][0] <= self.steps:
                done.append(self._leave(heappop(self.decoding)[2]))
        if load.tokens:
            for request, length in self.chunks:
                request.computed += length
                if request.computed == request.prompt:
                    self.prefilling.popleft()
                    request.first = end
                    outcome.waits.append(end - request.arrival)
                    self.context += request.prompt + 1
                    self.outstanding -= 1
                    if request.output == 1:
                        done.append(self._leave(request))
                        continue
                    self.count += 1
                    self.fresh.append(end)
                    ends = self.steps + request.output - 1
                    heappush(self.decoding, (ends, self.count, request))
            self.pending -= load.tokens
            self.outstanding -= load.tokens
        return done

    def _leave(self, request: Request) -> Request:
        self.held -= request.prompt + request.output
        self.context -= request.prompt + request.output
        return request


@dataclass(slots=True)
class Outcome:
    """What clients saw."""

    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    extends: int = 0
    """Passes with prompts."""
    waits: list[float] = field(default_factory=list)
    """Seconds to the first token, of each request."""
    gaps: list[tuple[float, int]] = field(default_factory=list)
    """Seconds between two tokens of a request, and how many had that gap."""

    @property
    def rate(self) -> float:
        """Tokens a second, of prompts and answers."""
        return self.tokens / self.seconds

    def wait(self, share: float) -> float:
        """The TTFT that `share` of the requests do not exceed."""
        return quantile(((wait, 1) for wait in self.waits), share)

    def gap(self, share: float) -> float:
        return quantile(self.gaps, share)


def quantile(weighted: Iterable[tuple[float, int]], share: float) -> float:
    ordered = sorted(weighted)
    left = share * sum(count for _, count in ordered)
    for value, count in ordered:
        left -= count
        if left <= 0:
            return value
    return ordered[-1][0] if ordered else 0.0


def simulate(machine: Machine, trace: Trace, policy: Policy) -> Outcome:
    """A whole trace, from its first request to its last token."""
    price = Price()
    ranks = [Rank(machine, price) for _ in range(machine.ranks)]
    sent = [Request(r.arrival, r.prompt, r.output, r.rank) for r in trace.requests]
    later = deque(sent[trace.clients :] if trace.clients else ())
    coming = [(0.0 if trace.clients else r.arrival, n, r) for n, r in enumerate(sent)]
    coming = coming[: trace.clients] if trace.clients else coming
    heapify(coming)
    outcome = Outcome(tokens=sum(r.prompt + r.output for r in sent))
    now = known = 0.0
    while True:
        while coming and coming[0][0] <= known:
            arrival, _, request = heappop(coming)
            request.arrival = arrival
            _rank(ranks, request).place(request)
        views = [rank.propose(outcome.passes) for rank in ranks]
        if not any(view.row.decode_tokens or view.row.prompt_tokens for view in views):
            if not coming:
                del outcome.waits[: trace.clients or 0]
                return outcome
            now = known = max(now, coming[0][0])
            continue
        runs = policy(views)
        loads = [rank.load(run) for rank, run in zip(ranks, runs, strict=True)]
        busy = any(load.rows or load.tokens for load in loads)
        end = now + (machine.cost.of(loads) if busy else PACE)
        if busy:
            tokens = [load.tokens for load in loads]
            price.add(max(tokens), sum(tokens), end - now)
        outcome.passes += 1
        outcome.extends += any(load.tokens for load in loads)
        for rank, load in zip(ranks, loads, strict=True):
            for _ in rank.advance(load, end, outcome):
                outcome.seconds = end
                if later:
                    heappush(coming, (end, len(sent) - len(later), later.popleft()))
        known = now if machine.ahead and busy else end
        now = end


def _rank(ranks: Sequence[Rank], request: Request) -> Rank:
    if request.rank is not None:
        return ranks[request.rank]
    return min(ranks, key=lambda rank: rank.outstanding)
