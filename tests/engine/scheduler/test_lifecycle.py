"""Reservations with the prefix cache, line by line (scheduling/bench.py says how to read them)."""

import pytest
from scheduling.bench import Bench, MakeBench

SYSTEM = tuple(range(100, 140))
"""Two pages of 16 tokens, and half of a third."""


@pytest.fixture
def b(bench: MakeBench) -> Bench:
    return bench(prefix_cache=True)


def hits(bench: Bench) -> tuple[int, int]:
    state = bench.core.state(bench.now)
    return state.prefix_hit_tokens, state.prefix_query_tokens


def finish(bench: Bench, step: int, *tokens: int) -> list[str]:
    """Answer the steps in flight one after another, planning after each; all that was sent."""
    lines = []
    for token in tokens:
        samples = len(bench.core.steps.in_flight[0].samplers)
        lines += bench.done(step, *(token,) * samples) + bench.plan()
        step += 1
    return lines


def test_a_second_request_computes_only_what_follows_the_shared_prefix(b: Bench) -> None:
    b.submit("a", (*SYSTEM, 1, 2, 3), max_tokens=1)
    assert b.plan()[:2] == ["workers admit 0/1 [0,1,2]", "workers step 0: 0:0+32 <- -1"]
    b.done(0)
    assert b.done(1, 7)[0] == "s token a 0=7 length"
    state = b.core.state(0.0)
    assert (state.kv_used, state.kv_cached) == (0, 2)
    b.submit("b", (*SYSTEM, 4, 5, 6), max_tokens=1)
    assert b.plan() == ["workers admit 0/2 [0,1,2]", "workers step 2: 0:32+11* <- -1"]
    token = b.core.handle(*b.answer(2, 7))[0].message
    assert token.cached_tokens == 32
    assert hits(b) == (32, 86)


def test_a_prompt_whose_logprobs_are_asked_for_is_computed_whole(b: Bench) -> None:
    b.submit("a", SYSTEM, max_tokens=1)
    b.plan()
    b.done(0)
    b.done(1, 7)
    b.submit("b", SYSTEM, max_tokens=1, prompt_logprobs=0)
    assert [line for line in b.plan() if "step" in line] == [
        "workers step 2: 0:0+32? <- -1",
        "workers step 3: 0:32+8*? <- -1",
    ]


def test_a_prefix_is_shared_while_its_first_request_still_runs(b: Bench) -> None:
    b.submit("a", range(80), max_tokens=1)
    b.plan()
    b.done(0)  # 32 tokens are in place, the next 32 are being computed
    b.submit("b", range(80), max_tokens=1)
    assert b.plan() == [
        "workers admit 1/1 [0,1,5,6,7]",
        "workers step 2: 0:64+16* 1:32+16 <- -1",
    ]
    assert b.core.ledger.pool.references(0) == 2
    b.done(1)
    b.done(2, 7)
    assert b.core.ledger.pool.references(0) == 1
    b.plan()
    b.done(3, 7)
    assert b.free == 64


def test_the_last_token_is_always_computed(b: Bench) -> None:
    b.submit("a", 32, max_tokens=1)
    b.plan()
    b.done(0, 7)
    b.submit("a", 32, max_tokens=1)
    assert b.plan()[1] == "workers step 1: 0:16+16* <- -1"
    b.done(1, 7)
    b.submit("a", 33, max_tokens=1)
    assert b.plan()[1] == "workers step 2: 0:32+1* <- -1"


def test_the_next_turn_of_a_chat_finds_the_answer_too(b: Bench) -> None:
    b.submit("a", 30, max_tokens=20)
    b.plan()
    lines = finish(b, 0, *range(200, 220))
    assert "s token a 19=219 length" in lines
    b.submit("b", (*range(30), *range(200, 220), 1, 2), max_tokens=1)
    # 30 + 20 tokens; the last one's keys were never computed, and 49 fill three pages.
    assert b.plan()[1] == "workers step 20: 0:48+4* <- -1"


def test_given_output_is_found_like_a_prompt_and_counts_as_prompt_only_there(b: Bench) -> None:
    b.submit("a", 40, max_tokens=1)
    b.plan()
    finish(b, 0, 7, 7)
    b.submit("r", 20, max_tokens=40, output_ids=tuple(range(20, 40)))
    assert b.plan()[1] == "workers step 2: 0:32+8* <- -1"
    assert b.core.handle(*b.answer(2, 7))[0].message.cached_tokens == 20
    assert hits(b) == (32, 80)


def test_a_page_whose_tokens_have_not_come_back_is_not_shared(b: Bench) -> None:
    b.submit("a", 32, max_tokens=1)
    b.plan()
    b.submit("b", 33, max_tokens=1)
    assert b.plan()[1] == "workers step 1: 1:0+32 <- -1"  # a's step 0 is not done


def test_a_cancelled_request_leaves_what_its_steps_have_computed(b: Bench) -> None:
    b.submit("a", 90, max_tokens=1)
    b.plan()
    b.cancel("a")
    b.done(0)
    assert b.free == 58  # step 1 still writes
    b.done(1)
    assert b.free == 64
    b.submit("b", 90, max_tokens=1)
    assert b.plan()[1] == "workers step 2: 0:64+26* <- -1"


def test_pages_that_others_hold_cost_a_request_nothing(bench: MakeBench) -> None:
    b = bench(pages=7, prefix_cache=True)
    b.submit("a", 70, max_tokens=20)  # six pages, in the end
    b.plan()
    finish(b, 0, 7, 7, 7)
    b.submit("b", 70, max_tokens=1)  # five, of which a holds four
    assert "workers admit 1/1 [0,1,2,3,5]" in b.plan()
    b.submit("c", 70, max_tokens=17)  # six: more than there are, whatever is shared
    assert finish(b, 3, 7) and len(b.core.ledger.queue) == 1


def test_idle_pages_are_given_up_for_new_requests_and_never_counted_twice(bench: MakeBench) -> None:
    b = bench(pages=4, prefix_cache=True)
    b.submit("a", 64, max_tokens=1)
    b.plan()
    finish(b, 0, 7, 7)
    assert b.core.state(0.0).kv_cached == 4
    b.submit("b", (*range(32), *range(500, 532)), max_tokens=1)
    assert b.plan()[0] == "workers admit 0/2 [0,1,3,2]"  # two of a's are kept, two are evicted
    finish(b, 2, 7)
    b.submit("c", 64, max_tokens=1)
    assert b.plan()[1] == "workers step 3: 0:32+32* <- -1"


def test_switched_off_nothing_is_kept(bench: MakeBench) -> None:
    b = bench()
    b.submit("a", 32, max_tokens=1)
    b.plan()
    b.done(0, 7)
    b.submit("a", 33, max_tokens=1)
    assert b.plan()[1] == "workers step 1: 0:0+32 <- -1"
    assert (hits(b), b.core.state(0.0).kv_cached) == ((0, 0), 0)
