"""Preemption: which request gives its pages up when running requests find none.

Requests have an order, their rank: by priority, then first come first served. The victim is the
last in order of those that run, never the first. So the first of all unfinished requests is never
preempted once it runs, and while it waits nobody is admitted before it: it finishes, and the next
one is the first. No two can preempt each other for ever. A request that migrates keeps its age in
the next group. Those that were admitted with their full growth need no page of others.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.request import Phase, Request


def with_pages(ledger: Ledger, due: Iterable[Request], share: int) -> Sequence[Request]:
    """The first `share` of `due` that have a page for their next token, or can get one now.

    Where pages run out, the last requests in order are preempted, as many as it takes. Their pages
    return when their steps in flight are done; until then, rows without a page wait, and those
    behind them go before.
    """
    due = iter(due)
    rows = list(islice(due, share))
    if len(rows) <= ledger.pool.available:
        return rows
    growing = [request for request in rows if _finds_no_page(ledger, request)]
    if len(growing) <= ledger.pool.available:
        return rows
    behind = list(due)
    while _short(ledger, growing) and (victim := last_running(ledger)) is not None:
        ledger.preempt(victim)
        growing = [request for request in growing if request.phase is Phase.DECODING]
    ready, available = list[Request](), ledger.pool.available
    for request in (*rows, *behind):
        if len(ready) == share:
            break
        if request.phase is not Phase.DECODING:
            continue
        if _finds_no_page(ledger, request):
            if not available:
                continue
            available -= 1
        ready.append(request)
    return ready


def last_running(ledger: Ledger) -> Request | None:
    """The last in order of the running requests that may be preempted; never the first of all."""
    running = sorted((*ledger.decoding, *ledger.prefilling), key=lambda request: request.rank)
    return next((r for r in reversed(running[1:]) if r in ledger.allocator.growing), None)


def _finds_no_page(ledger: Ledger, request: Request) -> bool:
    """Its next token needs a page, and none was promised to it."""
    return not request.promised and ledger.allocator.lacks_page(request)


def _short(ledger: Ledger, growing: Sequence[Request]) -> bool:
    available = ledger.pool.available
    return len(growing) > available and len(growing) > available + ledger.returning()
