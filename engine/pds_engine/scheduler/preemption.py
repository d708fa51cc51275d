"""Preemption by recompute: who is put back when running requests find no page to grow on.

Requests have an order, their rank: by priority, then first come first served. The victim is the
last in order of those that run, never the first. So the first of all unfinished requests is never
put back once it runs, and while it waits nobody is taken up before it: it finishes, and the next
one is the first. No two can put each other back for ever.
"""

from collections.abc import Sequence

from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.request import Phase, Request


def with_pages(ledger: Ledger, rows: Sequence[Request]) -> Sequence[Request]:
    """Those of `rows` that have a page for their next token, or can get one now.

    Where pages run out, the last requests in order are put back, as many as it takes. Their pages
    return when their steps in flight are done; until then, rows without a page wait.
    """
    if not ledger.settings.recompute or len(rows) <= ledger.pool.available:
        return rows
    growing = [request for request in rows if ledger.lacks_page(request)]
    if len(growing) <= ledger.pool.available:
        return rows
    while _short(ledger, growing) and (victim := last_running(ledger)) is not None:
        ledger.preempt(victim)
        growing = [request for request in growing if request.phase is Phase.DECODING]
    ready, available = [], ledger.pool.available
    for request in rows:
        if request.phase is not Phase.DECODING:
            continue
        if ledger.lacks_page(request):
            if not available:
                continue
            available -= 1
        ready.append(request)
    return ready


def last_running(ledger: Ledger) -> Request | None:
    """The last in order of the requests that run, if it is not also the first."""
    running = [*ledger.decoding, *ledger.prefilling]
    return max(running, key=lambda request: request.rank) if len(running) > 1 else None


def _short(ledger: Ledger, growing: Sequence[Request]) -> bool:
    available = ledger.pool.available
    return len(growing) > available and len(growing) > available + ledger.returning()
