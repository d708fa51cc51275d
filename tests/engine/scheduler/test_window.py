"""Sliding windows: pages behind them are given back, and those of a prompt come slice by slice."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Role, StepPlan, TransferDone, Welcome
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.prefix import PrefixCache
from pds_engine.scheduler.request import Phase
from scheduling.bench import Bench, MakeBench, P, events

WINDOW = 32
"""Two pages of 16 tokens."""
ALONE = {"window": WINDOW, "async_scheduling": False}
"""One step at a time, so that sequences are short."""


def run_out(b: Bench, look: Callable[[], object] = lambda: None) -> None:
    """Until nothing is left; `look` after each plan."""
    b.plan()
    while b.core.steps.in_flight:
        look()
        oldest = b.core.steps.in_flight[0]
        b.done(oldest.plan.step_id, *(9 for _ in oldest.samplers))
        b.plan()
    assert not b.core.ledger.requests
    assert (b.core.ledger.pool.used, b.core.ledger.pool.promised) == (0, 0)


# ---- pages come and go -------------------------------------------------------------------------


def test_a_long_prompt_holds_its_window(bench: MakeBench):
    """A chunk of two pages at 64 reads from 33 on: pages 0 and 1 have returned, and are new ones.

    The 97th token reads from 65 on, and the 113th from 81 on.
    """
    b = bench(pages=8, **ALONE)
    b.submit("r", 96, max_tokens=20)
    assert events(b, 5) == [
        "admit 0/1 []",
        "step 0: 0:0+32(0,1) <- -1",
        "step 1: 0:32+32(2,3) <- -1",  # reads from position 1 on
        "step 2: 0:64+32*(1,0) <- -1",
        "s token r 0=2",
        "step 3: 0:96+1*(3) <- 2",
        "s token r 1=3",
        "step 4: 0:97+1* <- 3",
        "s token r 2=4",
        "step 5: 0:98+1* <- 4",
    ]
    request = b.core.ledger.requests["r"]
    assert (request.dropped, request.pages) == (4, [1, 0, 3])
    run_out(b)


def test_a_page_stays_while_a_step_in_flight_reads_it(bench: MakeBench):
    """Three chunks are in flight; the first to end frees nothing that the second reads."""
    b = bench(pages=16, window=16, chunk_size=16, pp=2)
    b.submit("r", 96, max_tokens=1)
    b.plan()
    held = []
    while b.core.steps.in_flight:
        request = b.core.ledger.requests["r"]
        held.append((b.core.steps.in_flight[0].plan.rows[0].start, request.dropped))
        oldest = b.core.steps.in_flight[0]
        b.done(oldest.plan.step_id, *(9 for _ in oldest.samplers))
        b.plan()
    assert held == [(0, 0), (16, 0), (32, 1), (48, 2), (64, 3), (80, 4)]


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize(("chunk", "window"), [(32, 64), (64, 50), (16, 128)])
@pytest.mark.parametrize("preemption", ["recompute", "none"])
def test_pages_in_use_are_bounded(
    bench: MakeBench, preemption: str, chunk: int, window: int, pp: int, prefix_cache: bool
):
    """A context of eight windows, most of it prompt, on a pool of exactly the bound's pages."""
    bounds = {"window": window, "pp": pp, "chunk_size": chunk, "preemption": preemption}
    most = bounded(page_size=16, **bounds).at_once(10_000)
    assert most == -(-(window - 1 + (pp + 1) * chunk + 15) // 16)
    b = bench(pages=most, max_step_tokens=chunk + 4, prefix_cache=prefix_cache, **bounds)
    b.submit("r", 7 * window, max_tokens=window)
    used: list[int] = []
    run_out(b, lambda: used.append(b.core.ledger.pool.used))
    assert most - 2 <= max(used) <= most < 8 * window // 16
    assert b.core.ledger.preemptions == 0


def test_many_requests_share_a_pool_by_their_windows(bench: MakeBench):
    """Four requests of 16 pages each, on a pool for the windows of four."""
    settings = bounded(page_size=16, chunk_size=16, **ALONE)
    b = bench(pages=4 * settings.at_once(100), chunk_size=16, preemption="none", **ALONE)
    for name in "abcd":
        b.submit(name, 128, max_tokens=128)
    running: list[int] = []
    run_out(b, lambda: running.append(b.core.ledger.running))
    assert max(running) == 4


def test_a_row_waits_for_a_page_that_leaves_the_window(bench: MakeBench):
    """No page is free, one returns when the step in flight is done: nobody is preempted for it."""
    b = bench(pages=6, window=16, chunk_size=16, max_step_tokens=40)
    b.submit("a", 15, max_tokens=60)
    b.submit("b", 15, max_tokens=60)
    b.submit("c", 15, max_tokens=60)
    run_out(b)
    assert b.core.ledger.preemptions == 0


def test_the_longest_request_that_is_accepted(bench: MakeBench):
    """What counts is what it holds at once."""
    most = bounded(page_size=16, chunk_size=32, **ALONE).at_once(1000)
    assert bench(pages=most, **ALONE).submit("r", 960, max_tokens=40) == []
    refused = bench(pages=most - 1, **ALONE).submit("r", 960, max_tokens=40)
    assert refused == ["s failed r 400 context_length_exceeded"]


# ---- who pays for a page -----------------------------------------------------------------------


def test_each_holder_pays():
    pool = PagePool(4, each_pays=True)
    pool.promise(2)
    pages = pool.take(2)
    pool.share(pages)
    assert (pool.free, pool.available) == (2, 0)
    pool.release(pages[:1])
    assert (pool.free, pool.available) == (2, 1)


def test_who_leaves_a_shared_page_finds_another(bench: MakeBench):
    """b holds pages that a gives back. a goes on, as it may not be preempted: b has paid for them,
    so c, which would take a's next page, is not admitted."""
    shape: dict[str, Any] = {**ALONE, "chunk_size": 16, "preemption": "none", "prefix_cache": True}
    most = bounded(page_size=16, **shape).at_once(100)
    assert most == 4
    b = bench(pages=2 * most, **shape)
    b.submit("a", 48, max_tokens=100)
    events(b, 3)
    b.submit("b", 40, max_tokens=100)  # shares two pages
    b.plan()
    counts = Counter(page for r in b.core.ledger.requests.values() for page in r.pages)
    assert sorted(counts.values())[-1] == 2
    b.submit("c", 16, max_tokens=1)
    b.plan()
    assert b.core.ledger.requests["c"].phase is Phase.WAITING
    run_out(b)


# ---- the prefix cache ---------------------------------------------------------------------------


def test_a_hit_is_what_the_next_token_reads(bench: MakeBench):
    """Six pages are found; the next token, at 96, reads from 65 on."""
    b = bench(pages=16, prefix_cache=True, **ALONE)
    b.submit("first", 96, max_tokens=1)
    run_out(b)
    b.submit("second", 100, max_tokens=1)
    assert b.plan()[0].endswith("from page 4")
    request = b.core.ledger.requests["second"]
    assert (request.cached, request.dropped, len(request.pages)) == (96, 4, 3)
    run_out(b)


@pytest.mark.parametrize(
    ("cached", "found"),
    [
        ("abcdef", (4, "ef")),
        ("ef", (4, "ef")),
        ("bcd", (2, "cd")),
        ("abc", (1, "bc")),
        ("a", (0, "a")),
        ("bdf", (0, "")),
        ("", (0, "")),
    ],
)
def test_the_longest_beginning_that_is_there_as_far_as_it_is_read(
    cached: str, found: tuple[int, str]
):
    """Of the pages a to f; whoever goes on after some of them reads the last two."""
    cache = PrefixCache()
    for letter in cached:
        cache.enter(letter.encode(), ord(letter))
    first, pages = cache.find_window([b"a", b"b", b"c", b"d", b"e", b"f"], lambda n: max(n - 2, 0))
    assert (first, "".join(map(chr, pages))) == found


def test_nobody_finds_what_gave_no_sound_result(bench: MakeBench):
    """Pages that were given back are forgotten, too."""
    b = bench(pages=16, prefix_cache=True, **ALONE)
    b.submit("r", 90, max_tokens=9)
    events(b, 2)
    assert len(b.core.ledger.pool.cache) == 4
    b.done(2, 9, unsound=(0,))
    assert len(b.core.ledger.pool.cache) == 0
    assert b.core.ledger.pool.free == 16


# ---- preemption ----------------------------------------------------------------------------------


def test_a_preempted_request_begins_at_its_first_page(bench: MakeBench):
    b = bench(pages=8, window=64, async_scheduling=False)
    b.submit("first", 48, max_tokens=60)
    b.submit("last", 48, max_tokens=60)
    lines = events(b, 200)
    assert b.core.ledger.preemptions == 1
    assert [line for line in lines if line.startswith("admit")] == [
        "admit 0/1 []",
        "admit 1/1 []",
        "admit 0/2 []",
    ]
    assert not b.core.ledger.requests


# ---- the hand-over ------------------------------------------------------------------------------


def test_d_offers_the_pages_of_the_last_window(bench: MakeBench):
    """The token after 100 others reads from 69 on: from page 4."""
    b = bench(pages=8, role="decode", **ALONE)
    b.submit("r", 100, max_tokens=4)
    assert b.plan() == [
        "workers expect r@1 [0,1,2]",
        "p:8001 offer r@1 [0,1,2] from 64",
    ]
    assert b.core.ledger.pool.used + b.core.ledger.pool.promised == 3


def test_d_is_offered_what_its_cache_lacks_of_the_window(bench: MakeBench):
    """Of the pages 4 to 6 that it needs it has page 4, though none of those before."""
    b = bench(pages=8, role="decode", prefix_cache=True, **ALONE)
    b.submit("r", 90, max_tokens=2)
    b.plan()
    b.handle(P, Welcome(incarnation="them"))
    done = TransferDone(
        transfer="r", epoch=1, token=9, logprobs=None, cached_tokens=0, finish_reason=None
    )
    assert b.handle(P, done)[-1] == "workers admit 0/1 [0,1,2] from page 3"
    run_out(b)
    b.submit("again", 100, max_tokens=4)
    offered = b.plan()[-1]
    assert offered.startswith("p:8001 offer again@2")
    assert offered.endswith("from 80")
    assert b.core.ledger.requests["again"].dropped == 4
    assert b.core.ledger.prefix_hits == 16  # none of those that it did not look for


@pytest.mark.parametrize("found", [0, 96])
def test_p_pushes_these_pages_alone(bench: MakeBench, found: int):
    """Whether it computes its prompt or finds it in its cache. It gives back those before them."""
    b = bench(pages=8, role="prefill", prefix_cache=True, **ALONE)
    if found:
        b.submit("before", found, max_tokens=4)
        b.offer("before", found, [5, 6], start_token=64)
        run_hand_over(b, "before")
    b.submit("r", 100, max_tokens=4)
    b.offer("r", 100, [5, 6, 7], start_token=64)
    pushed = run_hand_over(b, "r")
    assert [peer for _, peer in pushed] == [5, 6, 7]
    assert len({page for page, _ in pushed}) == 3
    assert b.core.ledger.pool.used == 0


def run_hand_over(b: Bench, name: str) -> list[tuple[int, int]]:
    """Compute and push a prompt; the pages that were pushed, and to where."""
    pushed: list[tuple[int, int]] = []
    out = b.core.plan(b.now)
    while True:
        for plan in (o.message for o in out if isinstance(o.message, StepPlan)):
            for push in plan.pushes:
                pushed += zip(push.src_pages, push.dst_pages, strict=True)
        if not b.core.steps.in_flight:
            break
        oldest = b.core.steps.in_flight[0]
        b.done(oldest.plan.step_id, *(9 for _ in oldest.samplers))
        out = b.core.plan(b.now)
    b.pushed(name)
    b.closed(name)
    return pushed


def test_p_refuses_an_offer_of_pages_behind_the_window(bench: MakeBench):
    b = bench(pages=8, role="prefill", **ALONE)
    b.submit("r", 100, max_tokens=4)
    assert b.offer("r", 100, range(7)) == [
        "d refused r transfer_failed",
        "s failed r 503 transfer_failed",
    ]


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "at_once", "first"), [("unified", 7, 0), ("prefill", 7, 0), ("decode", 4, 6)]
)
def test_bounds_of_a_window(role: Role, at_once: int, first: int):
    """Two steps in flight, of 32 tokens on a group that computes prompts."""
    settings = bounded(role=role, window=33, chunk_size=32, page_size=16)
    assert (settings.at_once(3), settings.at_once(100)) == (3, at_once)
    assert settings.first_page(128) == first
    assert [settings.behind(position) for position in (0, 47, 48, 63, 64)] == [0, 0, 1, 1, 2]


def test_without_a_window_a_request_holds_what_it_fills():
    settings = bounded(page_size=16)
    assert (settings.at_once(100), settings.behind(10_000)) == (100, 0)
