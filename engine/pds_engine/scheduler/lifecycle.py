"""Where each request is in its life, from its arrival to the return of its last page.

    WAITING ──admit, start_prefill──▶ PREFILLING ──its last chunk──▶ DECODING
            ──admit, offer──▶ OFFERED ──start_decode──▶ DECODING
    PREFILLING, DECODING ──preempt──▶ PREEMPTED ──role=unified──▶ WAITING: computed anew
                                                ──role=decode──▶ ENDED: it migrates to another group
    any ──finish, abort──▶ ENDED

Pages and slot of an ended or preempted request return to the pool only when the last issued step
that names them is done and no transfer refers to them (scheduling.md): a plan that was sent is
executed by every stage, so until then the pages are still written.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from operator import attrgetter

from pds_engine.errors import PdsError, Preempted
from pds_engine.messages import Admit, Release, Row, Token
from pds_engine.scheduler.allocation import Allocator
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.party import WORKERS, Outbox, failure
from pds_engine.scheduler.prefill import Chunk
from pds_engine.scheduler.queue import WaitingQueue
from pds_engine.scheduler.request import Phase, Request
from pds_engine.scheduler.settings import Settings

RETIRED = frozenset({Phase.ENDED, Phase.PREEMPTED})
NO_PAGE = "the decode group has no KV page left for its next token"
_RANK = attrgetter("rank")


class Ledger:
    """All requests by phase. Its methods are the transitions: nothing else writes a request's
    phase, nor what belongs to it (tests/engine/scheduler/test_transitions.py)."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.settings = settings
        self.out = out
        self.allocator = Allocator(settings)
        self.queue = WaitingQueue()
        """Those that wait to be admitted."""
        self.preemptions = 0
        self.done = -1
        """The last step that is done."""
        self.prefix_queries = 0
        """Tokens of admitted requests that the prefix cache was asked for."""
        self.prefix_hits = 0
        """Those of them that it had."""
        self._requests: dict[str, Request] = {}
        self._prefilling: list[Request] = []
        self._decoding: deque[Request] = deque()
        self._finishing: set[Request] = set()
        """Those whose last token is being computed: they end without another page."""
        self._computing: deque[tuple[int, Request, Chunk]] = deque()
        """Slices of prompts in flight that sample nothing, by step."""
        self._reading: deque[tuple[int, Request, int]] = deque()
        """Where a window moves: rows in flight that a page leaves it with, by step, and the
        position after each."""
        self._lingering: defaultdict[int, list[Request]] = defaultdict(list)

    # ---- who is where --------------------------------------------------------------------------

    @property
    def requests(self) -> Mapping[str, Request]:
        """All that live, by id."""
        return self._requests

    @property
    def prefilling(self) -> Sequence[Request]:
        """By rank."""
        return self._prefilling

    @property
    def decoding(self) -> Collection[Request]:
        """Those with output left to schedule, the one scheduled longest ago first."""
        return self._decoding

    @property
    def decodes(self) -> int:
        """How many decode, those whose last token is being computed included."""
        return len(self._decoding) + len(self._finishing)

    @property
    def pool(self) -> PagePool:
        return self.allocator.pool

    @property
    def running(self) -> int:
        """Slots that are held."""
        return self.allocator.running

    def open(self, pages: int) -> None:
        """The workers have `pages` pages: requests can be admitted."""
        self.allocator.pool = PagePool(pages, each_pays=self.settings.window is not None)

    # ---- from arrival to the first step --------------------------------------------------------

    def add(self, request: Request) -> None:
        """It has arrived, and lives until it is finished or aborted. It is not in the queue yet."""
        self._requests[request.id] = request

    def enqueue(self, request: Request) -> None:
        """It may be admitted."""
        self.queue.push(request)

    def admissible(self) -> Request | None:
        """The first in the queue, if a slot and the pages that it needs are there."""
        request = self.queue.first()
        return request if request is not None and self.allocator.fits(request) else None

    def admit(self, request: Request) -> None:
        """Out of the queue, with a slot and pages; `start_prefill` or `offer` follows."""
        self.queue.remove(request)
        new = request.gen < 0
        found = self.allocator.allocate(request)
        if new and self.settings.scheduler.prefix_cache:
            request.cached = min(found, request.prompt_len)
            self.prefix_queries += request.context_len
            self.prefix_hits += found

    def offer(self, request: Request) -> tuple[int, ...]:
        """A prefill group computes its context: the pages that are to be filled there."""
        request.phase = Phase.OFFERED
        return tuple(request.pages[request.shared - request.dropped :])

    def start_prefill(self, request: Request) -> None:
        """Admit it on the workers, and compute its context."""
        self._admit_on_workers(request)
        request.phase = Phase.PREFILLING
        insort(self._prefilling, request, key=_RANK)

    def start_decode(self, request: Request) -> None:
        """Admit it on the workers: its context's keys are in place, one more token is known."""
        request.computed = request.context_len
        request.planned = len(request.outputs)
        self.allocator.extend(request, request.prompt_len + request.planned)
        self._admit_on_workers(request)
        request.phase = Phase.DECODING
        self._decoding.appendleft(request)

    # ---- steps ---------------------------------------------------------------------------------

    def schedule_decodes(self, requests: Sequence[Request], step_id: int) -> list[Row]:
        """Step `step_id` computes one token of each, which stand in the order of `decoding`.

        The longest loop of a plan: what it needs of a request is said in place.
        """
        decoding, page_size = self._decoding, self.settings.kv.page_size
        waiting = deque[Request]()
        rows = []
        for request in requests:
            while (oldest := decoding.popleft()) is not request:
                waiting.appendleft(oldest)  # for a page: it stays before those planned now
            start = request.computed
            full = start == request.covered * page_size
            rows.append(
                Row(
                    slot=request.slot,
                    gen=request.gen,
                    start=start,
                    length=1,
                    new_pages=self.allocator.grow(request) if full else (),
                    samples=True,
                )
            )
            request.computed = start + 1
            request.planned += 1
            request.last_step = request.last_sample = step_id
            if request.planned < request.max_tokens:
                decoding.append(request)
            else:
                self._finishing.add(request)
        decoding.extendleft(waiting)
        if (window := self.settings.window) is not None:
            self._reading.extend(
                (step_id, request, request.computed)
                for request in requests
                if (request.computed + 1 - window) % page_size == 0
            )
        return rows

    def schedule_chunk(self, request: Request, chunk: Chunk, step_id: int) -> Row:
        """Step `step_id` computes this slice of its context; the last one samples its next token.

        The tokens of one that samples are known by their token; the others' when the step is done.
        """
        scores = request.scores(chunk.start)
        request.computed += chunk.length
        new_pages = self.allocator.extend(request, request.computed)
        if self.settings.window is not None:
            self._reading.append((step_id, request, request.computed))
        request.last_step = step_id
        if chunk.samples:
            request.planned += 1
            request.last_sample = step_id
            request.phase = Phase.DECODING
            self._prefilling.remove(request)
            if self.settings.role != "prefill" and request.planned < request.max_tokens:
                self._decoding.append(request)
            else:
                self._finishing.add(request)
        else:
            self._computing.append((step_id, request, chunk))
        return Row(
            slot=request.slot,
            gen=request.gen,
            start=chunk.start,
            length=chunk.length,
            new_pages=new_pages,
            samples=chunk.samples,
            scores=scores,
        )

    def append(self, request: Request, token: Token) -> None:
        """Its next output token is known: keep it, and send it to its server."""
        request.outputs.append(token.token)
        self.allocator.remember(request, request.prompt_len + token.index)
        self.out.put(request.server, token)

    def step_done(self, step_id: int) -> None:
        """Step `step_id` is done, and all before it: what only waited for them returns.

        Call it after the step's tokens are known.
        """
        self.done = step_id
        while self._computing and self._computing[0][0] <= step_id:
            _, request, chunk = self._computing.popleft()
            if request.pages:
                self.allocator.remember(request, chunk.start + chunk.length)
        while self._reading and self._reading[0][0] <= step_id:
            _, request, end = self._reading.popleft()
            if request.phase not in RETIRED:  # else all of its pages return at once
                self.allocator.drop(request, end)
        for request in self._lingering.pop(step_id, ()):
            self._reclaim(request)

    def leaving(self) -> list[Request]:
        """Those whose pages return when the steps in flight are done."""
        lingering = [request for held in self._lingering.values() for request in held]
        return [*lingering, *self._finishing]

    def returning(self) -> int:
        """Pages that will be available when the steps in flight are done."""
        regains = self.pool.regains
        return self.dropping() + sum(regains(page) for r in self.leaving() for page in r.pages)

    def dropping(self, victims: Container[Request] = ()) -> int:
        """Those of them that running requests, but for `victims`, then have behind their window."""
        if self.settings.window is None:
            return 0
        running = (r for r in (*self._decoding, *self._prefilling) if r not in victims)
        return sum(self.allocator.dropping(request) for request in running)

    # ---- hand-over -----------------------------------------------------------------------------

    def begin_transfer(self, request: Request) -> None:
        """Workers may read its pages to push them, whatever becomes of it."""
        request.transferring = True

    def end_transfer(self, request: Request) -> None:
        """No worker reads its pages for that any more."""
        request.transferring = False
        self._reclaim(request)

    def quarantine(self, request: Request) -> tuple[int, ...]:
        """A peer may still write the pages that it was offered: nobody has them until `readmit`."""
        return self.allocator.quarantine(request)

    def readmit(self, pages: Sequence[int]) -> None:
        """Nobody can write these pages any more: out of quarantine, and free."""
        self.pool.readmit(pages)

    # ---- leaving -------------------------------------------------------------------------------

    def preempt(self, request: Request) -> None:
        """Take a running request's slot and pages once its last issued step is done.

        It then waits in the queue again, or on role=decode migrates to another group. The tokens of
        its steps in flight are still its own, and are sent as they come.
        """
        self.preemptions += 1
        self._retire(request, Phase.PREEMPTED)
        self._reclaim(request)

    def finish(self, request: Request) -> None:
        """Discard its results from now on; what it holds returns when nothing refers to it."""
        self._requests.pop(request.id, None)
        self._retire(request, Phase.ENDED)
        self._reclaim(request)

    def abort(
        self, request: Request, error: PdsError, withdraw: Callable[[], None] | None = None
    ) -> None:
        """Send its server the error, let `withdraw` end its hand-over, and finish it."""
        self.out.put(request.server, failure(request.id, error))
        if withdraw is not None:
            withdraw()
        self.finish(request)

    def _retire(self, request: Request, phase: Phase) -> None:
        """No later step names it. Workers release it after the last one that does."""
        self._leave(request)
        lingers = request.phase in RETIRED
        request.phase = phase
        self.allocator.stop_growing(request)
        if request.on_workers:
            request.on_workers = False
            self.out.put(
                WORKERS,
                Release(slot=request.slot, gen=request.gen, after_step=request.last_step),
            )
        if request.last_step > self.done and not lingers:
            self._lingering[request.last_step].append(request)

    def _leave(self, request: Request) -> None:
        if request.phase is Phase.WAITING:
            self.queue.remove(request)
        elif request.phase is Phase.PREFILLING:
            self._prefilling.remove(request)
        elif request in self._finishing:
            self._finishing.remove(request)
        elif request.phase is Phase.DECODING and request in self._decoding:
            self._decoding.remove(request)

    def _reclaim(self, request: Request) -> None:
        """Return what an ended or preempted request holds, as far as nothing refers to it.

        Safe to repeat.
        """
        if request.phase not in RETIRED or request.last_step > self.done:
            return
        self.allocator.free(request)
        if request.phase is not Phase.PREEMPTED:
            return
        if self.settings.recompute:
            self._requeue(request)
        else:  # migrated: whoever reads the stream takes it to another group
            self.abort(request, Preempted(NO_PAGE))

    def _requeue(self, request: Request) -> None:
        """It holds nothing any more: all its known tokens are to be computed anew."""
        request.restart()
        request.phase = Phase.WAITING
        self.queue.push(request)

    def _admit_on_workers(self, request: Request) -> None:
        request.on_workers = True
        self.out.put(
            WORKERS,
            Admit(
                slot=request.slot,
                gen=request.gen,
                prompt_ids=request.submit.prompt_ids,
                output_ids=tuple(request.outputs),
                sampling=request.sampling,
                seed=request.submit.seed,
                first_page=request.dropped,
                pages=tuple(request.pages),
            ),
        )
