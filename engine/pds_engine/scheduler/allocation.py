"""The slot and the pages of a request: what it is admitted with, how it grows, what it returns.

When they are given back is decided by the ledger (lifecycle.py), which knows the steps in flight.
"""

from itertools import islice

from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.prefix import lengthen
from pds_engine.scheduler.request import Request, growth, wanted
from pds_engine.scheduler.settings import Settings
from pds_engine.scheduler.slots import SlotPool

GROWTH_RESERVE = 2
"""Pages that a decode group leaves over for each request that may be preempted, as far as it may
want them. With one, twice as many are preempted for the same work done; with four, few are, and a
tenth less runs (docs/scheduling.md)."""


class Allocator:
    """Slots and pages of all requests.

    A request that must not be preempted is admitted only with the pages of its full growth
    promised, in the queue's order: so it can always finish, and no two wait for each other's pages.
    For others (Settings.elastic) pages for the known tokens suffice; preemption.py says why all
    finish then.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = PagePool(0)
        """Empty until the workers have reported how many pages they have."""
        self.slots = SlotPool(settings.scheduler.max_running)
        self.growing: set[Request] = set()
        """Those admitted that may be preempted: they find the pages of their growth as they go."""
        self._page_size = settings.kv.page_size
        """Read once: every token asks for it."""

    @property
    def running(self) -> int:
        """Slots that are held."""
        return self.settings.scheduler.max_running - self.slots.free

    @property
    def spare(self) -> int:
        """Pages that a request could be admitted with now."""
        return max(self.pool.available - self._reserve(), 0)

    # ---- admission -----------------------------------------------------------------------------

    def fits(self, request: Request) -> bool:
        """Whether a slot is there, and the pages that it is to be admitted with.

        Pages of its prefix that others hold cost nothing; idle ones cost what blank ones do. A
        reserve is left over for the growth of what runs: else what was preempted would come back at
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

    def allocate(self, request: Request) -> None:
        """Give it a slot, pages for its known tokens, and a promise of those that it may want.

        The pages of its cached prefix are among them: their tokens count as computed.
        """
        prefix = self._cached(request)
        self.pool.share(prefix)
        request.pages = prefix
        request.shared = request.entered = len(prefix)
        request.computed = len(prefix) * self._page_size
        request.promised = self._wanted(request) - len(prefix)
        self.pool.promise(request.promised)
        request.slot, request.gen = self.slots.acquire()
        if self.elastic(request):
            request.most = growth(request.submit, self.settings)
            self.growing.add(request)
        self.extend(request, request.context_len)

    def elastic(self, request: Request) -> bool:
        """Whether it may be preempted, and so is admitted before its full growth has pages."""
        return self.settings.elastic(request.submit.resumable)

    # ---- growth --------------------------------------------------------------------------------

    def lacks_page(self, request: Request) -> bool:
        """Whether the request's next token needs a page that it does not hold."""
        return request.computed == len(request.pages) * self._page_size

    def grow(self, request: Request) -> tuple[int, ...]:
        """One more page for the request: a promised one, or where it is elastic a free one."""
        if not request.promised and self.elastic(request):
            self.pool.promise(1)
            request.promised += 1
        grown = self.pool.take(1)
        request.pages += grown
        request.promised -= 1
        return grown

    def extend(self, request: Request, tokens: int) -> None:
        """Take the promised pages that its first `tokens` tokens lack."""
        missing = self.settings.pages_for(tokens) - len(request.pages)
        if missing > 0:
            request.pages += self.pool.take(missing)
            request.promised -= missing

    # ---- the way back --------------------------------------------------------------------------

    def stop_growing(self, request: Request) -> None:
        """No step will name it any more: others may have the pages that were promised to it."""
        self.growing.discard(request)
        self.pool.withdraw(request.promised)
        request.promised = 0

    def free(self, request: Request) -> None:
        """Take back its slot, and its pages unless a transfer still reads them. Safe to repeat."""
        if request.slot >= 0:
            self.slots.release(request.slot)
            request.slot = -1
        if not request.transferring and request.pages:
            self.pool.release(request.pages)
            request.pages = []

    def quarantine(self, request: Request) -> tuple[int, ...]:
        """Quarantine the pages that a peer may still write: nobody may use them.

        The caller readmits them. Those of its cached prefix, which no peer was offered, are free.
        """
        shared, own = request.pages[: request.shared], tuple(request.pages[request.shared :])
        self.pool.release(shared)
        request.pages = []
        self.pool.quarantine(own)
        return own

    # ---- the prefix cache ----------------------------------------------------------------------

    def remember(self, request: Request, tokens: int) -> None:
        """Its first `tokens` tokens are known and their keys are in place: others may read them.

        Call it only for tokens that a step or a transfer has brought, never for those to come.
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

    # ---- steps of the above --------------------------------------------------------------------

    def _cached(self, request: Request) -> list[int]:
        """The pages of its cached prefix; at least its last token is left to compute.

        None where its prompt's log-probabilities are asked for: they come of computing it.
        """
        size, chain = self._page_size, request.chain
        if not self.settings.scheduler.prefix_cache or request.scores(0):
            return []
        lengthen(chain, request.known(len(chain) * size, request.context_len), size)
        return self.pool.cache.find(islice(chain, (request.context_len - 1) // size))

    def _wanted(self, request: Request) -> int:
        return wanted(request.submit, self.settings, request.given)

    def _reserve(self) -> int:
        """Pages that are left over when a request is admitted, for the growth of what runs."""
        if self.settings.recompute:
            return self.running
        return sum(min(GROWTH_RESERVE, r.most - len(r.pages) - r.promised) for r in self.growing)
