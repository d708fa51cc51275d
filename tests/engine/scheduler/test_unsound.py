"""A request for which the model has no finite score ends alone; what it held comes back."""

from typing import Any

from pds_engine.messages import AbortAck, TransferClosed, Welcome
from pds_engine.scheduler.party import WORKERS, Party
from scheduling.bench import MakeBench

P = Party("prefill", "p:8001")


def test_it_fails_alone_and_its_neighbour_goes_on(bench: MakeBench) -> None:
    b = bench()
    b.submit("bad", 5, max_tokens=9)
    b.submit("good", 6, max_tokens=2)
    b.plan()
    assert b.done(0, 0, 7, unsound=(0,)) == [
        "s failed bad 500 not_finite",
        "workers release 0/1 after 1",
        "s token good 0=7",
    ]
    b.plan()
    # The step in flight names it still: its result is of no account, then all of it comes back.
    assert b.done(1, 0, 8, unsound=(0,)) == [
        "s token good 1=8 length",
        "workers release 1/1 after 1",
    ]
    assert (b.free, b.core.ledger.running, b.core.ledger.requests) == (64, 0, {})
    assert b.core.ledger.pool.promised == 0


def test_it_may_fail_in_mid_answer(bench: MakeBench) -> None:
    b = bench()
    b.submit("bad", 5, max_tokens=9)
    b.plan()
    assert b.done(0, 3) == ["s token bad 0=3"]
    b.plan()
    assert b.done(1, 0, unsound=(0,))[0] == "s failed bad 500 not_finite"


def test_its_pages_are_not_found_by_the_next_with_its_prefix(bench: MakeBench) -> None:
    """Nor those it found itself: whatever spoiled them would spoil every request behind it."""
    b = bench(prefix_cache=True)

    def live(name: str, **result: Any) -> int:
        b.submit(name, 47, max_tokens=1)
        b.plan()
        while b.core.steps.in_flight:
            issued = b.core.steps.in_flight[0]
            b.done(issued.plan.step_id, *[4] * len(issued.samplers), **result)
        return len(b.core.ledger.pool.cache)

    assert live("sound") == 2
    assert live("bad", unsound=(0,)) == 0
    assert b.core.ledger.prefix_hits == 32
    assert live("again") == 2
    assert (b.core.ledger.prefix_hits, b.free) == (32, 64)


def test_a_prefill_group_answers_both_its_server_and_the_decode_side(bench: MakeBench) -> None:
    p = bench(role="prefill")
    p.submit("r", 20, max_tokens=9)
    p.offer("r", 20, [7, 8])
    p.plan()
    assert p.done(0, 0, unsound=(0,)) == [
        "s failed r 500 not_finite",
        "workers close r",
        "workers release 0/1 after 0",
    ]
    assert p.handle(WORKERS, TransferClosed(transfer="r", rank=0)) == ["d ack r@1 not_finite"]
    assert (p.free, p.core.state(0.0).transfers_in_flight) == (64, 0)


def test_a_decode_group_reports_what_the_prefill_side_found(bench: MakeBench) -> None:
    d = bench(role="decode")
    d.submit("r", 20, max_tokens=9)
    d.plan()
    d.handle(P, Welcome(incarnation="them"))
    ack = AbortAck(transfer="r", epoch=1, code="not_finite", message="no finite score")
    assert d.handle(P, ack) == ["workers forget r@1", "s failed r 500 not_finite"]
    assert d.free == 64
