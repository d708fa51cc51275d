"""Preemption: which request gives its pages up when running requests find none.

Requests have an order, their rank: by priority, then first come first served. The victim is the
last in order of those that run, never the first. So the first of all unfinished requests is never
preempted once it runs, and while it waits nobody is admitted before it: it finishes, and the next
one is the first. No two can preempt each other for ever. A request that migrates keeps its age in
the next group. Those that were admitted with their full growth need no page of others.

Nothing is changed here: victims are proposed, and preempted when the step is issued (steps.py).
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.request import Request


class Forecast:
    """The ledger's pages as they would be with `victims` preempted."""

    def __init__(self, ledger: Ledger) -> None:
        self.victims: list[Request] = []
        self._ledger = ledger
        self._freed: dict[int, int] = {}
        """References that victims give up at once, by page."""
        self._lingering: list[Request] = []
        """Victims whose pages steps in flight still write."""
        self.available = ledger.pool.available
        """Pages that can still be promised."""

    def preempt(self, victim: Request) -> None:
        """As Ledger.preempt does, in thought."""
        self.victims.append(victim)
        self.available += victim.promised
        if victim.last_step > self._ledger.done:
            self._lingering.append(victim)
        elif not victim.transferring:
            for page in victim.pages:
                self.available += self._regains(page)
                self._freed[page] = self._freed.get(page, 0) + 1

    def returning(self) -> int:
        """Pages that will be available when the steps in flight are done."""
        if not self.victims:
            return self._ledger.returning()
        leaving = (*self._ledger.leaving(), *self._lingering)
        returned = sum(self._regains(page) for request in leaving for page in request.pages)
        return returned + self._ledger.dropping(self.victims)

    def _regains(self, page: int) -> bool:
        """Whether one reference less to the page makes one available."""
        return self._ledger.pool.regains(page, self._freed.get(page, 0))


def with_pages(
    ledger: Ledger, forecast: Forecast, due: Iterable[Request], share: int
) -> Sequence[Request]:
    """The first `share` of `due` that have a page for their next token, or can get one now.

    Where pages run out, the last requests in order become `forecast`'s victims, as many as it
    takes. Their pages return when their steps in flight are done; until then, rows without a page
    wait, and those behind them go before.
    """
    if forecast.victims:
        due = [request for request in due if request not in forecast.victims]
    due = iter(due)
    rows = list(islice(due, share))
    if len(rows) <= forecast.available:
        return rows
    growing = [request for request in rows if _finds_no_page(ledger, request)]
    if len(growing) <= forecast.available:
        return rows
    behind = list(due)
    while _short(forecast, growing) and (victim := last_running(ledger, forecast)) is not None:
        forecast.preempt(victim)
        growing = [request for request in growing if request is not victim]
    ready, available = list[Request](), forecast.available
    for request in (*rows, *behind):
        if len(ready) == share:
            break
        if request in forecast.victims:
            continue
        if _finds_no_page(ledger, request):
            if not available:
                continue
            available -= 1
        ready.append(request)
    return ready


def last_running(ledger: Ledger, forecast: Forecast) -> Request | None:
    """The last in order of the running requests that may be preempted; never the first of all."""
    running = sorted(
        (r for r in (*ledger.decoding, *ledger.prefilling) if r not in forecast.victims),
        key=lambda request: request.rank,
    )
    return next((r for r in reversed(running[1:]) if r in ledger.allocator.growing), None)


def _finds_no_page(ledger: Ledger, request: Request) -> bool:
    """Its next token needs a page, and none was promised to it."""
    return not request.promised and ledger.allocator.lacks_page(request)


def _short(forecast: Forecast, growing: Sequence[Request]) -> bool:
    available = forecast.available
    return len(growing) > available and len(growing) > available + forecast.returning()
