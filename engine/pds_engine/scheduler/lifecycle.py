"""What a request holds, from its reservation to the return of its last page.

Pages and slot of an ended request return to the pool only when the last issued step that names them
is done and no transfer refers to them (engine.md §3): a plan that was sent is executed by every
stage, so until then the pages are still written.
"""

from collections import defaultdict, deque

from pds_engine.messages import Admit, Release
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.party import WORKERS, Outbox
from pds_engine.scheduler.queue import WaitingQueue
from pds_engine.scheduler.request import Phase, Request, growth
from pds_engine.scheduler.settings import Settings
from pds_engine.scheduler.slots import Slots


class Ledger:
    """All requests by phase, and the pages and slots that they hold.

    A request is taken up only with the pages of its full growth promised, in the queue's order: so
    every running request can always finish, and no two wait for each other's pages.
    """

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.settings = settings
        self.out = out
        self.pool = PagePool(0)
        """Empty until the workers have told how many pages they have."""
        self.slots = Slots(settings.max_running)
        self.requests: dict[str, Request] = {}
        self.queue = WaitingQueue()
        self.prefilling: list[Request] = []
        """In the order in which they were taken up."""
        self.decoding: deque[Request] = deque()
        """Those with output left to plan, the one planned longest ago first."""
        self.done = -1
        """The last step that is done."""
        self._lingering: defaultdict[int, list[Request]] = defaultdict(list)

    @property
    def running(self) -> int:
        """Slots that are held."""
        return self.settings.max_running - self.slots.free

    def fits(self, request: Request) -> bool:
        """Whether a slot and the pages of the request's full growth are there."""
        return self.slots.free > 0 and growth(request.submit, self.settings) <= self.pool.available

    def reserve(self, request: Request) -> None:
        """Give it a slot, the pages of what is known of it, and a promise of the rest."""
        request.promised = growth(request.submit, self.settings)
        self.pool.promise(request.promised)
        request.slot, request.gen = self.slots.acquire()
        self._take_up_to(request, request.context_len)

    def start(self, request: Request) -> None:
        """Tell the workers of it, and compute its context."""
        self._admit(request)
        request.phase = Phase.PREFILLING
        self.prefilling.append(request)

    def resume(self, request: Request) -> None:
        """Tell the workers of it: its context's keys are in place, and one more token is known."""
        request.computed = request.context_len
        request.planned = len(request.outputs)
        self._take_up_to(request, request.prompt_len + request.planned)
        self._admit(request)
        request.phase = Phase.DECODING
        self.decoding.appendleft(request)

    def end(self, request: Request) -> None:
        """Discard its results from now on; what it holds returns when nothing refers to it."""
        self.requests.pop(request.id, None)
        self._leave(request)
        request.phase = Phase.ENDED
        self.pool.withdraw(request.promised)
        request.promised = 0
        if request.on_workers:
            request.on_workers = False
            self.out.put(
                WORKERS,
                Release(slot=request.slot, gen=request.gen, after_step=request.last_step),
            )
        if request.last_step > self.done:
            self._lingering[request.last_step].append(request)
        self.reclaim(request)

    def step_done(self, step_id: int) -> None:
        """Step `step_id` is done, and with it all before: what only waited for it returns."""
        self.done = step_id
        for request in self._lingering.pop(step_id, ()):
            self.reclaim(request)

    def reclaim(self, request: Request) -> None:
        """Return what an ended request holds, as far as nothing refers to it. Safe to repeat."""
        if request.phase is not Phase.ENDED or request.last_step > self.done:
            return
        if request.slot >= 0:
            self.slots.release(request.slot)
            request.slot = -1
        if not request.transferring and request.pages:
            self.pool.release(request.pages)
            request.pages = []

    def detach(self, request: Request) -> tuple[int, ...]:
        """Take the pages of a request out of its hands; the caller answers for them."""
        pages, request.pages = tuple(request.pages), []
        return pages

    def _leave(self, request: Request) -> None:
        if request.phase is Phase.WAITING:
            self.queue.remove(request)
        elif request.phase is Phase.PREFILLING:
            self.prefilling.remove(request)
        elif request.phase is Phase.DECODING and request in self.decoding:
            self.decoding.remove(request)

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
