"""Preemption by recompute: who is preempted, when its pages return, and that nothing is lost."""

import pytest
from pds_engine.messages import Admit, StepDone
from pds_engine.scheduler.party import WORKERS
from scheduling.bench import Bench, MakeBench, events


def test_the_younger_of_two_is_preempted_and_computed_anew(bench: MakeBench) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", 4, max_tokens=9)
    assert events(b, 14) == [
        "admit 0/1 [0]",
        "admit 1/1 [1]",
        "step 0: 0:0+4* 1:0+4* <- -1",
        "step 1: 0:4+1*(2) 1:4+1*(3) <- 0",
        "s token a 0=0",
        "s token b 0=0",
        "step 2: 0:5+1* 1:5+1* <- 1",
        "s token a 1=1",
        "s token b 1=1",
        "step 3: 0:6+1* 1:6+1* <- 2",
        "s token a 2=2",
        "s token b 2=2",
        "step 4: 0:7+1* 1:7+1* <- 3",
        "s token a 3=3",
        "s token b 3=3",
        "release 1/1 after 4",  # both want a fifth page; b's are written until step 4 is done
        "s token a 4=4",
        "s token b 4=4",  # a token that was on its way is not lost
        "step 5: 0:8+1*(3) <- 4",
        "step 6: 0:9+1* <- 5",
        "s token a 5=5",
        "step 7: 0:10+1* <- 6",
        "s token a 6=6",
        "step 8: 0:11+1* <- 7",
        "s token a 7=7",
        "s token a 8=8 length",
        "release 0/1 after 8",
        "admit 0/2 [3,2,0]",
        "step 9: 0:0+9* <- -1",  # its prompt and the five tokens that it had
        "step 10: 0:9+1* <- 9",
        "s token b 5=9",
        "step 11: 0:10+1* <- 10",
        "s token b 6=10",
        "step 12: 0:11+1* <- 11",
        "s token b 7=11",
        "s token b 8=12 length",
        "release 0/2 after 12",
    ]
    assert (b.free, b.core.state(b.now).preemptions) == (4, 1)


def test_workers_are_given_all_tokens_so_far(bench: MakeBench) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", (7, 7, 7), max_tokens=10, output_ids=(8,))
    admits: list[Admit] = []
    while b.core.ledger.requests:
        out = b.core.plan(b.now)
        admits += [item.message for item in out if isinstance(item.message, Admit)]
        oldest = b.core.steps.in_flight[0]
        tokens = (oldest.plan.step_id,) * len(oldest.samplers)
        done = StepDone(step_id=oldest.plan.step_id, tokens=tokens, logprobs=(), elapsed=0.0)
        b.core.handle(WORKERS, done, b.now)
    assert [(admit.slot, admit.gen, admit.output_ids) for admit in admits] == [
        (0, 1, ()),
        (1, 1, (8,)),
        (0, 2, (8, 0, 1, 2, 3, 4)),
    ]
    assert admits[2].prompt_ids == (7, 7, 7)
    assert (admits[2].sampling, admits[2].seed) == (admits[1].sampling, admits[1].seed)


def victims(b: Bench) -> list[str]:
    """The requests that are preempted within the next steps, in order."""
    ledger, found = b.core.ledger, []
    preempt = ledger.preempt
    ledger.preempt = lambda request: (found.append(request.id), preempt(request))
    events(b, 12)
    return found


def test_the_last_in_order_is_the_victim(bench: MakeBench) -> None:
    b = bench(pages=6, page_size=4)
    for name, priority in (("a", 0), ("b", 1), ("c", 0)):
        b.submit(name, 4, max_tokens=13, priority=priority)
    assert victims(b) == ["b", "c"]


def test_a_prompt_that_is_being_computed_can_be_the_victim(bench: MakeBench) -> None:
    b = bench(pages=16, page_size=4, chunk_size=4, max_step_tokens=8)
    for name in "ab":
        b.submit(name, 4, max_tokens=13)
    b.submit("long", 40, max_tokens=1)
    lines = events(b, 40)
    at = lines.index("release 2/1 after 8")
    assert "step 8: 0:11+1* 1:10+1* 2:24+4 <- 7" in lines[:at]
    assert lines[-2:] == ["s token long 0=23 length", "release 1/2 after 23"]
    assert b.free == 16


def test_one_alone_is_never_preempted(bench: MakeBench) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=13)  # all four pages
    b.submit("b", 4, max_tokens=1)
    lines = events(b, 20)
    assert b.core.state(b.now).preemptions == 0
    assert "s token a 12=12 length" in lines


def test_pages_that_return_by_themselves_are_awaited(bench: MakeBench) -> None:
    b = bench(pages=3, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", 3, max_tokens=2)
    b.submit("c", 4, max_tokens=1)
    events(b, 12)
    assert b.core.state(b.now).preemptions == 0
    assert b.free == 3


def test_a_stop_among_the_tokens_on_their_way_ends_it(bench: MakeBench) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", 4, max_tokens=9, stop_token_ids=(4,))
    lines = events(b, 14)
    assert "s token b 4=4 stop" in lines
    assert "release 1/1 after 4" in lines
    assert not any(line.startswith("admit 0/2") for line in lines)
    assert b.free == 4


@pytest.mark.parametrize("when", ["on its way back", "in the queue"])
def test_cancelled_while_it_is_preempted(bench: MakeBench, when: str) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", 4, max_tokens=9)
    lines: list[str] = []
    while "release 1/1 after 4" not in lines:
        lines += events(b, 1)
    if when == "in the queue":
        lines += events(b, 1)
        assert len(b.core.ledger.queue) == 1
    assert b.cancel("b") == []
    lines = events(b, 14)
    assert not any(line.startswith("s token b") for line in lines)
    assert b.free == 4


def test_it_comes_back_before_others_of_its_priority(bench: MakeBench) -> None:
    b = bench(pages=4, page_size=4)
    b.submit("a", 4, max_tokens=9)
    b.submit("b", 4, max_tokens=9)
    events(b, 3)
    b.submit("later", 4, max_tokens=1)
    b.submit("urgent", 4, max_tokens=1, priority=-1)
    lines = events(b, 20)
    ends = [line.split()[2] for line in lines if line.endswith("length")]
    assert ends == ["urgent", "a", "b", "later"]


def test_what_it_had_computed_is_found_again(bench: MakeBench) -> None:
    b = bench(pages=5, page_size=4, prefix_cache=True)
    b.submit("a", (1, 1, 1, 1), max_tokens=9)
    b.submit("b", (2, 2, 2, 2), max_tokens=9)
    lines = events(b, 14)
    again = lines.index("admit 0/2 [1,3,4]")  # the first two pages are those of its first life
    assert lines[again + 1] == "step 9: 0:8+1* <- -1"
    assert "s token b 8=12 length" in lines[again:]
    state = b.core.state(b.now)
    assert (state.preemptions, state.prefix_query_tokens, state.prefix_hit_tokens) == (1, 8, 0)


def test_it_does_not_come_back_at_the_others_cost(bench: MakeBench) -> None:
    """A page for each running request stays free when one is admitted."""
    b = bench(pages=5, page_size=4)
    b.submit("a", 8, max_tokens=13)
    b.submit("b", 8, max_tokens=9)
    assert [line for line in b.plan() if "admit" in line] == [
        "workers admit 0/1 [0,1]",
        "workers admit 1/1 [2,3]",
    ]
    c = bench(pages=4, page_size=4)
    c.submit("a", 8, max_tokens=9)
    c.submit("b", 8, max_tokens=9)
    assert [line for line in c.plan() if "admit" in line] == ["workers admit 0/1 [0,1]"]
