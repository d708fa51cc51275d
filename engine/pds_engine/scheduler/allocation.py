"""The slot and the pages of a request: what it is admitted with, how it grows, what it returns.

When they are given back is decided by the ledger (lifecycle.py), which knows the steps in flight.
"""

from itertools import islice

from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.prefix import lengthen
from pds_engine.scheduler.request import Request, goal, growth, wanted
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

        Pages of its prefix that others hold cost nothing, unless each pays for them; idle ones cost
        what blank ones do. A reserve is left over for the growth of what runs: else what was
        preempted would come back at once, at its cost.
        """
        if not self.slots.free:
            return False
        missing = self._wanted(request) + self._reserve() - self.pool.available
        if missing <= 0:
            return True
        if self.pool.each_pays or missing > len(self.pool.cache) - self.pool.cache.idle:
            return False
        return sum(self.pool.references(page) > 0 for page in self._cached(request)[1]) >= missing

    def allocate(self, request: Request) -> int:
        """Give it a slot, pages for its known tokens, and a promise of those that it may want.

        The pages of its cached prefix are among them: their tokens count as computed. Returns how
        many tokens these are. Where a window moves over a prompt that is computed here, the pages
        of its later tokens are promised, and come with their slices.
        """
        settings = self.settings
        first, prefix = self._cached(request)
        self.pool.share(prefix)
        request.pages = prefix
        request.covered = request.shared = request.entered = first + len(prefix)
        request.computed = request.covered * self._page_size
        found = request.covered - settings.first_page(request.context_len)
        request.goal = goal(request.submit, settings, request.context_len)
        missing = request.goal - request.covered
        request.promised = min(self._wanted(request) - len(request.pages), missing)
        self.pool.promise(request.promised)
        request.slot, request.gen = self.slots.acquire()
        if self.elastic(request):
            request.most = settings.at_once(growth(request.submit, settings))
            self.growing.add(request)
        if settings.window is None or settings.role == "decode":
            self.extend(request, request.context_len)
        return found * self._page_size

    def elastic(self, request: Request) -> bool:
        """Whether it may be preempted, and so is admitted before its full growth has pages."""
        return self.settings.elastic(request.submit.resumable)

    # ---- growth --------------------------------------------------------------------------------

    def lacks_page(self, request: Request) -> bool:
        """Whether the request's next token needs a page that it does not hold."""
        return request.computed == request.covered * self._page_size

    def grow(self, request: Request) -> tuple[int, ...]:
        """One more page for the request: a promised one, or where it is elastic a free one."""
        if not request.promised and self.elastic(request):
            self.pool.promise(1)
            request.promised += 1
        grown = self.pool.take(1)
        request.pages += grown
        request.covered += 1
        request.promised -= 1
        return grown

    def extend(self, request: Request, tokens: int) -> tuple[int, ...]:
        """The promised pages that its first `tokens` tokens lack; they are its own from now on."""
        missing = self.settings.pages_for(tokens) - request.covered
        if missing <= 0:
            return ()
        taken = self.pool.take(missing)
        request.pages += taken
        request.covered += missing
        request.promised -= missing
        return taken

    # ---- the way back --------------------------------------------------------------------------

    def drop(self, request: Request, position: int) -> None:
        """Give back the pages that no row reads which begins at `position` or later.

        As many are promised anew as it lacks of those that it was admitted for. They are there:
        where a window moves, the pool counts each of its references (PagePool.each_pays).
        """
        gone = self.settings.behind(position) - request.dropped
        if gone <= 0:
            return
        self.pool.release(request.pages[:gone])
        del request.pages[:gone]
        again = self._again(request, gone)
        self.pool.promise(again)
        request.promised += again

    def dropping(self, request: Request) -> int:
        """Pages that others may have when its steps in flight are done and it goes on."""
        gone = max(self.settings.behind(request.computed) - request.dropped, 0)
        return gone - self._again(request, gone)

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
            request.covered, request.pages = 0, []

    def quarantine(self, request: Request) -> tuple[int, ...]:
        """Quarantine the pages that a peer may still write: nobody may use them.

        The caller readmits them. Those of its cached prefix, which no peer was offered, are free.
        """
        shared = request.shared - request.dropped
        own = tuple(request.pages[shared:])
        self.pool.release(request.pages[:shared])
        request.covered, request.pages = 0, []
        self.pool.quarantine(own)
        return own

    # ---- the prefix cache ----------------------------------------------------------------------

    def remember(self, request: Request, tokens: int) -> None:
        """Its first `tokens` tokens are known and their keys are in place: others may read them.

        Call it only for tokens that a step or a transfer has brought, never for those to come.
        """
        size = self._page_size
        full = tokens // size
        if full <= request.entered or not self.settings.scheduler.prefix_cache:
            return
        chain = request.chain
        lengthen(chain, request.known(len(chain) * size, full * size), size)
        dropped = request.dropped
        for index in range(request.entered, full):
            self.pool.enter(chain[index], request.pages[index - dropped])
        request.entered = full

    def disown(self, request: Request) -> None:
        """What its pages hold gave no sound result: nobody is to find them in the prefix cache."""
        for digest in request.chain[: request.dropped]:
            self.pool.forget(digest)
        for page in request.pages[: max(request.entered - request.dropped, 0)]:
            self.pool.cache.forget(page)

    # ---- steps of the above --------------------------------------------------------------------

    def _cached(self, request: Request) -> tuple[int, list[int]]:
        """The pages of its cached prefix from the first on that it reads, and that one's number; at
        least its last token is left to compute.

        None where its prompt's log-probabilities are asked for: they come of computing it.
        """
        size, chain, settings = self._page_size, request.chain, self.settings
        first = settings.first_page(request.context_len)
        if not settings.scheduler.prefix_cache or request.scores(0):
            return first, []
        lengthen(chain, request.known(len(chain) * size, request.context_len), size)
        most = (request.context_len - 1) // size
        if settings.window is None or settings.role == "decode":
            return first, self.pool.cache.find(islice(chain, first, most))
        return self.pool.cache.find_window(chain[:most], lambda end: settings.behind(end * size))

    def _wanted(self, request: Request) -> int:
        return wanted(request.submit, self.settings, request.given)

    def _again(self, request: Request, gone: int) -> int:
        """Of `gone` pages that it gives back, those for which others are promised to it."""
        return max(min(gone, request.goal - request.covered - request.promised), 0)

    def _reserve(self) -> int:
        """Pages that are left over when a request is admitted, for the growth of what runs."""
        if self.settings.recompute:
            return self.running
        return sum(min(GROWTH_RESERVE, r.most - len(r.pages) - r.promised) for r in self.growing)
