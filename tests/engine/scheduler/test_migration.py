"""Preemption on role=decode, from where requests migrate: the reserve, the victim, its pages."""

from typing import Any

import pytest
from pds_engine.messages import TransferDone
from pds_engine.scheduler.party import Party
from scheduling.bench import Bench, MakeBench, events

P = Party("prefill", "p:8001")


@pytest.fixture
def d(bench: MakeBench) -> MakeBench:
    def make(pages: int, **more: Any) -> Bench:
        return bench(role="decode", pages=pages, page_size=4, **more)

    return make


def ask(b: Bench, name: str, prompt: int = 4, max_tokens: int = 13, **more: Any) -> None:
    b.submit(name, prompt, max_tokens=max_tokens, **({"resumable": True} | more))


def offers(b: Bench) -> list[str]:
    return [line.split()[2] for line in b.plan() if " offer " in line]


def hand_over(b: Bench, *names: str) -> None:
    """P has computed these prompts; the first token of each is 100."""
    for name in names:
        epoch = b.core.decode.live[name].epoch
        record = TransferDone(
            transfer=name, epoch=epoch, token=100, logprobs=None, cached_tokens=0,
            finish_reason=None,
        )  # fmt: skip
        b.handle(P, record)


def test_what_is_offered_is_not_bound_by_what_may_be_asked_for(d: MakeBench) -> None:
    """Prompt and first token: two pages each; and two for the growth of each that was admitted."""
    names = "abcdef"
    full, elastic = d(20, max_running=6, max_waiting=6), d(20, max_running=6, max_waiting=6)
    for name in names:
        ask(full, name, max_tokens=37, resumable=False)  # ten pages each
        ask(elastic, name, max_tokens=37)
    assert offers(full) == ["a@1", "b@2"]
    assert offers(elastic) == ["a@1", "b@2", "c@3", "d@4", "e@5"]
    assert elastic.core.ledger.pool.available == 10


def test_the_reserve_is_no_more_than_what_a_request_may_still_want(d: MakeBench) -> None:
    b = d(6)
    for name in "abc":
        ask(b, name, max_tokens=5)  # two pages in the end, and no more
    assert offers(b) == ["a@1", "b@2", "c@3"]


def test_nobody_is_preempted_with_preemption_none(d: MakeBench) -> None:
    b = d(6, preemption="none")
    for name in "abc":
        ask(b, name)  # four pages in the end
    assert offers(b) == ["a@1"]
    assert b.core.ledger.allocator.growing == set()


def running(b: Bench, *names: str, **more: Any) -> Bench:
    """Each is offered for, handed over and begun before the next one comes."""
    for name in names:
        ask(b, name, **more)
        b.plan()
        hand_over(b, name)
    return b


def test_the_last_in_order_is_preempted_with_all_its_tokens(d: MakeBench) -> None:
    b = running(d(6), "a", "b")
    lines = events(b, 12)
    assert lines[lines.index("step 6: 1:8+1*(5) 0:10+1* <- 5") :] == [
        "step 6: 1:8+1*(5) 0:10+1* <- 5",
        "s token b 4=5",
        "s token a 6=5",
        "step 7: 1:9+1* 0:11+1* <- 6",
        "s token b 5=6",
        "s token a 7=6",
        "release 1/1 after 7",  # a wants a fourth page; b's are written until step 7 is done
        "s token b 6=7",  # a token that was on its way is not lost
        "s token a 8=7",
        "s failed b 503 preempted",
        "step 8: 0:12+1*(5) <- 7",
        "step 9: 0:13+1* <- 8",
        "s token a 9=8",
        "step 10: 0:14+1* <- 9",
        "s token a 10=9",
        "step 11: 0:15+1* <- 10",
        "s token a 11=10",
        "s token a 12=11 length",
        "release 0/1 after 11",
    ]
    assert (b.free, b.core.state(b.now).preemptions) == (6, 1)
    assert b.core.ledger.requests == {}


def test_the_first_is_never_preempted(d: MakeBench) -> None:
    """Nor does it come out of turn that another, later one has its full growth set aside."""
    b = d(8)
    running(b, "a", max_tokens=25)
    running(b, "whole", resumable=False)
    lines = events(b, 40)
    assert not any("failed" in line for line in lines)
    assert [line.split()[2] for line in lines if line.endswith("length")] == ["whole", "a"]


def test_what_nobody_goes_on_with_is_never_preempted(d: MakeBench) -> None:
    b = d(10)
    running(b, "whole", resumable=False)
    running(b, "a", "b")
    lines = events(b, 40)
    assert [line for line in lines if "failed" in line] == ["s failed b 503 preempted"]
    assert [line.split()[2] for line in lines if line.endswith("length")] == ["whole", "a"]


def test_a_stop_among_the_tokens_on_their_way_ends_it(d: MakeBench) -> None:
    b = d(6)
    running(b, "a")
    running(b, "b", stop_token_ids=(7,))
    lines = events(b, 40)
    assert "s token b 6=7 stop" in lines
    assert not any("failed" in line for line in lines)
    assert b.free == 6


def test_cancelled_while_it_is_preempted(d: MakeBench) -> None:
    b = running(d(6), "a", "b")
    lines: list[str] = []
    while "release 1/1 after 7" not in lines:
        lines += events(b, 1)
    assert b.cancel("b") == []
    lines = events(b, 40)
    assert not any(" b " in line for line in lines)
    assert b.free == 6


def test_its_age_says_who_is_last(d: MakeBench) -> None:
    """A request that migrated here keeps its age, so a younger one is preempted before it."""
    b = running(d(6), "new")
    b.submit("old", 4, max_tokens=13, output_ids=(1,), since=50.0, resumable=True)
    b.plan()
    hand_over(b, "old")
    lines = events(b, 40)
    assert [line for line in lines if "failed" in line] == ["s failed new 503 preempted"]
    assert any(line.startswith("s token old 12=") for line in lines)


def test_a_clock_that_is_ahead_makes_nobody_younger(d: MakeBench) -> None:
    b = d(64)
    ask(b, "a", since=1e9)
    ask(b, "b")
    ask(b, "c", since=99.0)
    assert offers(b) == ["c@1", "a@2", "b@3"]


def test_what_has_begun_is_not_refused_for_a_full_queue(d: MakeBench) -> None:
    b = d(2, max_waiting=1)
    ask(b, "a", max_tokens=5)
    b.plan()
    assert b.submit("b", 4, max_tokens=5, resumable=True) == []
    assert b.submit("c", 4, max_tokens=5, resumable=True) == ["s failed c 429 overloaded"]
    assert b.submit("d", 4, max_tokens=5, output_ids=(1, 2), resumable=True) == []


def test_rows_without_a_page_let_others_go_before(d: MakeBench) -> None:
    """Two stages: a step takes one of two rows. The first waits for a page of the second."""
    b = d(8, pp=2)
    running(b, "a", max_tokens=25)
    running(b, "whole", max_tokens=13, resumable=False)
    lines = events(b, 60)
    assert [line.split()[2] for line in lines if line.endswith("length")] == ["whole", "a"]
    assert b.free == 8
