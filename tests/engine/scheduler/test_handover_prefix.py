"""Prefixes that either side of a hand-over has already (scheduling/bench.py: the lines)."""

import pytest
from pds_engine.messages import PushDone
from pds_engine.scheduler.party import WORKERS
from scheduling.bench import Bench, MakeBench


@pytest.fixture
def p(bench: MakeBench) -> Bench:
    return bench(role="prefill")


def test_pages_that_d_has_already_are_left_out(p: Bench) -> None:
    p.submit("r", 47, max_tokens=9)
    p.offer("r", 47, [9], start_token=32)
    steps = [line for line in p.plan() if "step" in line]
    assert steps == [
        "workers step 0: 0:0+32 <- -1 push r []>[]",
        "workers step 1: 0:32+15* <- -1 push r [2]>[9] last",
    ]


def steps(lines: list[str]) -> list[str]:
    return [line.removeprefix("workers ") for line in lines if "step" in line]


@pytest.fixture
def warm(bench: MakeBench) -> Bench:
    """A prefill group whose cache holds the first two pages of the request to come."""
    p = bench(role="prefill", prefix_cache=True)
    p.submit("old", 40, max_tokens=9)
    p.offer("old", 40, [1, 2, 3])
    p.plan()
    p.done(0)
    p.done(1, 5)
    p.pushed("old")
    p.closed("old")
    assert p.free == 64
    return p


def test_the_first_chunk_brings_the_pages_of_its_cached_prefix(warm: Bench) -> None:
    warm.submit("r", 80, max_tokens=9)
    warm.offer("r", 80, [11, 12, 13, 14, 15])
    assert steps(warm.plan()) == [
        "step 2: 0:32+32 <- -1 push r [0,1,2,3]>[11,12,13,14]",
        "step 3: 0:64+16* <- -1 push r [4]>[15] last",
    ]
    warm.done(2)
    warm.done(3, 5)
    assert (warm.free, warm.core.ledger.pool.references(0)) == (59, 1)  # a push still reads them
    done = warm.core.handle(
        WORKERS, PushDone(transfer="r", rank=0, bytes=1, seconds=0.1), warm.now
    )[0].message
    assert done.cached_tokens == 32
    warm.closed("r")
    assert warm.free == 64


@pytest.mark.parametrize(
    ("start", "offered", "pushes"),
    [
        (16, [12, 13, 14, 15], ["[1,2,3]>[12,13,14]", "[4]>[15] last"]),
        (32, [13, 14, 15], ["[2,3]>[13,14]", "[4]>[15] last"]),
        (48, [14, 15], ["[3]>[14]", "[4]>[15] last"]),
        (64, [15], ["[]>[]", "[4]>[15] last"]),
    ],
)
def test_both_sides_have_a_prefix_of_their_own(
    warm: Bench, start: int, offered: list[int], pushes: list[str]
) -> None:
    warm.submit("r", 80, max_tokens=9)
    warm.offer("r", 80, offered, start_token=start)
    assert [line.split("push r ")[1] for line in steps(warm.plan())] == pushes


def test_a_prefix_is_shared_by_two_requests_that_are_pushed_at_once(warm: Bench) -> None:
    for name, pages in (("a", [11, 12, 13]), ("b", [21, 22, 23])):
        warm.submit(name, 40, max_tokens=9)
        warm.offer(name, 40, pages)
    (line,) = steps(warm.plan())
    assert line.split(" push ")[1:] == ["a [0,1,2]>[11,12,13] last", "b [0,1,3]>[21,22,23] last"]
    warm.done(2, 5, 5)
    warm.cancel("a")
    warm.pushed("b")
    warm.closed("b")
    assert warm.core.ledger.pool.references(0) == 1  # a's push may still read it
    warm.pushed("a")
    warm.closed("a")
    assert warm.free == 64
