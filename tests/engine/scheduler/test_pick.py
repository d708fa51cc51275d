"""Who is in the next step, by exact sequences; and that nobody waits for ever, by counting."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.messages import StepPlan
from scheduling.bench import Bench, MakeBench


def plans(b: Bench) -> list[StepPlan]:
    """The steps that are issued now."""
    messages = [item.message for item in b.core.plan(b.now)]
    return [message for message in messages if isinstance(message, StepPlan)]


def finish(b: Bench) -> None:
    """The oldest step in flight is done."""
    oldest = b.core.steps.in_flight[0]
    b.done(oldest.plan.step_id, *(7,) * len(oldest.samplers))


def rows(b: Bench, count: int) -> list[str]:
    """The next steps' rows, slot:start+length, each step planned when the oldest one is done."""
    found: list[str] = []
    while len(found) < count:
        if b.core.steps.full:
            finish(b)
        found += [
            " ".join(f"{r.slot}:{r.start}+{r.length}" + "*" * r.samples for r in plan.rows)
            for plan in plans(b)
        ]
    assert len(found) == count, "another step was planned with the last one"
    return found


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one(bench: MakeBench) -> None:
    b = bench()
    b.submit("long", 160, max_tokens=1)
    assert rows(b, 2) == ["0:0+32", "0:32+32"]
    b.submit("short", 20, max_tokens=1)
    assert rows(b, 3) == ["0:64+32", "1:0+20*", "0:96+32"]


def test_the_first_in_order_has_every_second_turn(bench: MakeBench) -> None:
    b = bench()
    b.submit("long", 256, max_tokens=1)
    b.submit("middle", 96, max_tokens=1)
    b.submit("short", 40, max_tokens=1)
    assert rows(b, 7) == [
        "0:0+32",
        "2:0+32",
        "0:32+32",
        "2:32+8* 1:0+16",  # those with least left; what the one leaves goes to the next
        "0:64+32",
        "1:16+32",
        "0:96+32",
    ]


def test_equal_prompts_are_first_come_first_served(bench: MakeBench) -> None:
    b = bench()
    b.submit("a", 96, max_tokens=1)
    b.submit("b", 96, max_tokens=1)
    assert rows(b, 6) == ["0:0+32", "0:32+32", "0:64+32*", "1:0+32", "1:32+32", "1:64+32*"]


def test_a_smaller_priority_number_has_every_turn(bench: MakeBench) -> None:
    b = bench()
    b.submit("early", 64, max_tokens=1)
    b.submit("short", 20, max_tokens=1)
    b.submit("urgent", 96, max_tokens=1, priority=-1)
    assert rows(b, 5) == ["0:0+32", "0:32+32", "0:64+32*", "2:0+20*", "1:0+32"]


def test_separate_steps_hold_chunks_or_decodes_by_turns(bench: MakeBench) -> None:
    b = bench(chunked_prefill="separate")
    b.submit("a", 5, max_tokens=20)
    b.submit("b", 6, max_tokens=20)
    assert rows(b, 2) == ["0:0+5* 1:0+6*", "0:5+1* 1:6+1*"]
    b.submit("long", 96, max_tokens=20)
    assert rows(b, 7) == [
        "2:0+32",
        "0:6+1* 1:7+1*",
        "2:32+32",
        "0:7+1* 1:8+1*",
        "2:64+32*",
        "0:8+1* 1:9+1* 2:96+1*",
        "0:9+1* 1:10+1* 2:97+1*",
    ]


def test_separate_steps_of_a_pipeline_hold_twice_the_decodes(bench: MakeBench) -> None:
    b = bench(pp=2, chunked_prefill="separate")
    for name in "abc":
        b.submit(name, 5, max_tokens=50)
    rows(b, 3)
    b.submit("long", 320, max_tokens=1)
    kinds = [row.count("+32") or row.count("+1*") * 10 for row in rows(b, 9)]
    assert sorted(set(kinds)) == [1, 30]
    assert all(one != other for one, other in pairwise(kinds))


def test_a_late_chunk_is_shorter_once_chunks_were_measured(bench: MakeBench) -> None:
    """A token takes 1 second, and 1/64 for each one before it."""
    b = bench(dynamic_chunks=True, chunk_size=128, max_step_tokens=132, pages=256)
    b.submit("long", 2048, max_tokens=1)
    lengths = []
    while b.core.ledger.requests:
        b.core.plan(b.now)
        plan = b.core.steps.in_flight[0].plan
        (row,) = plan.rows
        lengths.append(row.length)
        elapsed = row.length * (1 + (2 * row.start + row.length) / 64)
        b.done(plan.step_id, *(7,) * row.samples, elapsed=elapsed)
    assert lengths[:9] == [128] * 9  # eight were measured when the tenth was planned
    assert set(lengths[10:-1]) == {16}


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=8
)
"""Prompt, steps until the next one comes, max_tokens."""


@pytest.mark.parametrize("chunked_prefill", ["mixed", "separate"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrivals=ARRIVALS)
def test_waiting_is_bounded(
    bench: MakeBench, chunked_prefill: str, arrivals: list[tuple[int, int, int]]
) -> None:
    """Whoever comes meanwhile, a prompt is computed within twice the chunks that were left of those
    before it when it came, and its own. (Steps of running requests alone are not counted.)"""
    b = bench(max_running=8, max_waiting=8, pages=256, chunked_prefill=chunked_prefill)
    ledger = b.core.ledger
    coming = dict(enumerate(arrivals))
    bounds: dict[str, int] = {}
    count = wait = 0
    while coming or ledger.requests:
        if coming and wait <= 0:
            at = min(coming)
            length, wait, max_tokens = coming.pop(at)
            left = [r.context_len - r.computed for r in ledger.requests.values()]
            b.submit(f"r{at}", length, max_tokens=max_tokens)
            bounds[f"r{at}"] = count + 2 * sum(-(-one // 32) for one in (*left, length) if one > 0)
        wait -= 1
        for plan in plans(b):
            prompts = {r.slot: r for r in ledger.requests.values()}
            chunks = [row for row in plan.rows if row.start < prompts[row.slot].context_len]
            count += bool(chunks)
            for row in chunks:
                if row.samples:
                    assert count <= bounds.pop(prompts[row.slot].id)
        if b.core.steps.in_flight:
            finish(b)
    assert not bounds
