"""What a request holds, from its reservation to the return of its last page.

Pages and slot of an ended or preempted request return to the pool only when the last issued step
that names them is done and no transfer refers to them (scheduling.md): a plan that was sent is
executed by every stage, so until then the pages are still written.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter

from pds_engine.errors import Preempted
from pds_engine.messages import Admit, Release
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.party import WORKERS, Outbox, failure
from pds_engine.scheduler.prefill import Chunk
from pds_engine.scheduler.prefix import lengthen
from pds_engine.scheduler.queue import WaitingQueue
from pds_engine.scheduler.request import Phase, Request, growth
from pds_engine.scheduler.settings import Settings
from pds_engine.scheduler.slots import Slots

RETIRED = frozenset({Phase.ENDED, Phase.PREEMPTED})
GROWTH_RESERVE = 2
"""Pages that a decode group leaves over for each request that may be put out, as far as it may want
them. With one, twice as many are put out for the same work done; with four, few are, and a tenth
less runs (scheduling.md)."""
NO_PAGE = "the decode group has no KV page left for its next token"
_RANK = attrgetter("rank")


class Ledger:
    """All requests by phase, and the pages and slots that they hold.

    A request that must not be preempted is taken up only with the pages of its full growth
    promised, in the queue's order: so it can always finish, and no two wait for each other's pages.
    For others (Settings.elastic) the pages of what is known suffice; preemption.py says why all
    finish then.
    """

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.settings = settings
        self.out = out
        self.pool = PagePool(0)
        """Empty until the workers have told how many pages they have."""
        self.slots = Slots(settings.scheduler.max_running)
        self.requests: dict[str, Request] = {}
        self.queue = WaitingQueue()
        self.prefilling: list[Request] = []
        """By rank."""
        self.decoding: deque[Request] = deque()
        """Those with output left to plan, the one planned longest ago first."""
        self.finishing: set[Request] = set()
        """Those whose last token is being computed: they end without another page."""
        self.growing: set[Request] = set()
        """Those taken up that may be preempted: they find the pages of their growth as they go."""
        self.preemptions = 0
        self.done = -1
        """The last step that is done."""
        self.prefix_queries = 0
        """Tokens of requests taken up, that the prefix cache was asked for."""
        self.prefix_hits = 0
        """Those of them that it had."""
        self._page_size = settings.kv.page_size
        """Read once: every token asks for it."""
        self._computing: deque[tuple[int, Request, Chunk]] = deque()
        """Slices of prompts in flight that sample nothing, by step."""
        self._lingering: defaultdict[int, list[Request]] = defaultdict(list)

    @property
    def running(self) -> int:
        """Slots that are held."""
        return self.settings.scheduler.max_running - self.slots.free

    def fits(self, request: Request) -> bool:
        """Whether a slot is there, and the pages that it is to be taken up with.

        Pages of its prefix that others hold cost nothing; idle ones cost what blank ones do. A
        reserve is left over for the growth of what runs: else what was put back would come back at
        once, at its cost.
        """
        if not self.slots.free:
            return False
        missing = self._wanted(request) + self._reserve() - self.pool.available
        if missing <= 0:
            return True
        if missing > len(self.pool.cache) - self.pool.cache.idle:
            return False
        return sum(self.pool.references(page) > 0 for page in self._cached(request)) >= missing

    def reserve(self, request: Request) -> None:
        """Give it a slot, the pages of what is known of it, and a promise of what it may want."""
        prefix = self._cached(request)
        self.pool.share(prefix)
        request.pages = prefix
        request.shared = request.entered = len(prefix)
        request.computed = len(prefix) * self._page_size
        if request.gen < 0 and self.settings.scheduler.prefix_cache:
            request.cached = min(request.computed, request.prompt_len)
            self.prefix_queries += request.context_len
            self.prefix_hits += request.computed
        request.promised = self._wanted(request) - len(prefix)
        self.pool.promise(request.promised)
        request.slot, request.gen = self.slots.acquire()
        if self.elastic(request):
            request.most = growth(request.submit, self.settings)
            self.growing.add(request)
        self._take_up_to(request, request.context_len)

    def start(self, request: Request) -> None:
        """Tell the workers of it, and compute its context."""
        self._admit(request)
        request.phase = Phase.PREFILLING
        insort(self.prefilling, request, key=_RANK)

    def resume(self, request: Request) -> None:
        """Tell the workers of it: its context's keys are in place, and one more token is known."""
        request.computed = request.context_len
        request.planned = len(request.outputs)
        self._take_up_to(request, request.prompt_len + request.planned)
        self._admit(request)
        request.phase = Phase.DECODING
        self.decoding.appendleft(request)

    def lacks_page(self, request: Request) -> bool:
        """Whether the request's next token needs a page that it does not hold."""
        return request.computed == len(request.pages) * self._page_size

    def elastic(self, request: Request) -> bool:
        """Whether it may be preempted, and so is taken up before its full growth has pages."""
        return self.settings.elastic(request.submit.resumable)

    def grow(self, request: Request) -> tuple[int, ...]:
        """One more page for the request: a promised one, or where it is elastic a free one."""
        if not request.promised and self.elastic(request):
            self.pool.promise(1)
            request.promised += 1
        grown = self.pool.take(1)
        request.pages += grown
        request.promised -= 1
        return grown

    def preempt(self, request: Request) -> None:
        """Put a running request back to the queue, or out of the group on role=decode, once its
        last issued step is done.

        The tokens of its steps in flight are still its own: it is told of them as they come.
        """
        self.preemptions += 1
        self._retire(request, Phase.PREEMPTED)
        self.reclaim(request)

    def end(self, request: Request) -> None:
        """Discard its results from now on; what it holds returns when nothing refers to it."""
        self.requests.pop(request.id, None)
        self._retire(request, Phase.ENDED)
        self.reclaim(request)

    def issued(self, step_id: int, chunks: Iterable[tuple[Request, Chunk]]) -> None:
        """Step `step_id` computes these slices; those that sample are known by their token."""
        self._computing.extend((step_id, *one) for one in chunks if not one[1].samples)

    def step_done(self, step_id: int) -> None:
        """Step `step_id` is done, and with it all before: what only waited for it returns.

        To be told after the step's tokens are known.
        """
        self.done = step_id
        while self._computing and self._computing[0][0] <= step_id:
            _, request, chunk = self._computing.popleft()
            if request.pages:
                self.remember(request, chunk.start + chunk.length)
        for request in self._lingering.pop(step_id, ()):
            self.reclaim(request)

    def returning(self) -> int:
        """Pages that will be free when the steps in flight are done."""
        leaving = [request for held in self._lingering.values() for request in held]
        references = self.pool.references
        return sum(
            references(page) == 1
            for request in (*leaving, *self.finishing)
            for page in request.pages
        )

    def reclaim(self, request: Request) -> None:
        """Return what an ended or preempted request holds, as far as nothing refers to it.

        Safe to repeat.
        """
        if request.phase not in RETIRED or request.last_step > self.done:
            return
        if request.slot >= 0:
            self.slots.release(request.slot)
            request.slot = -1
        if not request.transferring and request.pages:
            self.pool.release(request.pages)
            request.pages = []
        if request.phase is Phase.PREEMPTED and self.settings.recompute:
            request.restart()
            self.queue.push(request)
        elif request.phase is Phase.PREEMPTED:
            del self.requests[request.id]
            request.phase = Phase.ENDED
            self.out.put(request.server, failure(request.id, Preempted(NO_PAGE)))

    def remember(self, request: Request, tokens: int) -> None:
        """Its first `tokens` tokens are known and their keys are in place: others may read them.

        Only what a step or a transfer has brought may be said here, never what one will bring.
        """
        size, chain = self._page_size, request.chain
        full = tokens // size
        if full <= request.entered or not self.settings.scheduler.prefix_cache:
            return
        lengthen(chain, request.known(len(chain) * size, full * size), size)
        for index in range(request.entered, full):
            self.pool.enter(chain[index], request.pages[index])
        request.entered = full

    def disown(self, request: Request) -> None:
        """What its pages hold gave no sound result: nobody is to find them in the prefix cache."""
        for page in request.pages[: request.entered]:
            self.pool.cache.forget(page)

    def detach(self, request: Request) -> tuple[int, ...]:
        """Take the pages of a request that a peer may write out of its hands.

        The caller answers for them. Those of its cached prefix, which no peer was offered, return.
        """
        shared, own = request.pages[: request.shared], request.pages[request.shared :]
        self.pool.release(shared)
        request.pages = []
        return tuple(own)

    def _cached(self, request: Request) -> list[int]:
        """The pages of its cached prefix; at least its last token is left to compute.

        None where its prompt's log-probabilities are asked for: they come of computing it.
        """
        size, chain = self._page_size, request.chain
        if not self.settings.scheduler.prefix_cache or request.scores(0):
            return []
        lengthen(chain, request.known(len(chain) * size, request.context_len), size)
        return self.pool.cache.find(islice(chain, (request.context_len - 1) // size))

    def _retire(self, request: Request, phase: Phase) -> None:
        """No step will name it any more; workers forget it after the last one that does."""
        self._leave(request)
        self.growing.discard(request)
        lingers = request.phase in RETIRED
        request.phase = phase
        self.pool.withdraw(request.promised)
        request.promised = 0
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
            self.prefilling.remove(request)
        elif request in self.finishing:
            self.finishing.remove(request)
        elif request.phase is Phase.DECODING and request in self.decoding:
            self.decoding.remove(request)

    def _wanted(self, request: Request) -> int:
        """Pages that are set aside for a request when it is taken up.

        On role=decode that of the first token's keys is among them, which comes with the others.
        """
        if self.settings.recompute:
            return self.settings.pages_for(request.context_len)
        most = growth(request.submit, self.settings)
        if not self.elastic(request):
            return most
        return min(self.settings.pages_for(request.context_len + 1), most)

    def _reserve(self) -> int:
        """Pages that are left over when a request is taken up, for the growth of what runs."""
        if self.settings.recompute:
            return self.running
        return sum(min(GROWTH_RESERVE, r.most - len(r.pages) - r.promised) for r in self.growing)

    def _take_up_to(self, request: Request, tokens: int) -> None:
        missing = self.settings.pages_for(tokens) - len(request.pages)
        if missing > 0:
            request.pages += self.pool.take(missing)
            request.promised -= missing

    def _admit(self, request: Request) -> None:
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
                pages=tuple(request.pages),
            ),
        )
