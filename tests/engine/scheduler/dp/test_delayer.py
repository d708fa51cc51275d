"""The delayer's table, row by row (docs/data-parallel.md), and what must hold over many passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.config import DelayerConfig, EngineConfig, ParallelConfig
from pds_engine.scheduler.dp.delayer import EXTRA, FUSE, WAITS, Bounds, Delayer, Wait, judge
from pds_engine.scheduler.dp.rows import SyncRow

UNIFIED = Bounds(max_ticks=30, rest_ticks=1, fuses=False)
PREFILL = UNIFIED._replace(fuses=True)
IDLE = SyncRow(1)
DECODES = SyncRow(1, decode_tokens=4, running=4)
PROMPT = SyncRow(1, decode_tokens=4, prompt_tokens=100, pending_tokens=100, running=4)
ALONE = SyncRow(1, prompt_tokens=100, pending_tokens=100)
"""A prompt where nothing decodes."""
QUEUES = PROMPT._replace(pending_tokens=900)
"""Further prompts wait for a slot."""
CUT = QUEUES._replace(cut=1, begun=1)
RESTED = Wait(since=1)


@pytest.mark.parametrize(
    ("rows", "wait", "bounds", "reason"),
    [
        # No rank has a prompt to compute, though one may have some that wait for slots.
        ((IDLE, IDLE), Wait(), UNIFIED, "nothing"),
        ((DECODES, DECODES._replace(pending_tokens=900)), Wait(since=0), UNIFIED, "nothing"),
        # A rank's clock says that a prompt is old: whatever else.
        ((QUEUES, DECODES._replace(aged=1)), Wait(since=0), UNIFIED, "aged"),
        ((ALONE._replace(aged=1), IDLE), Wait(), PREFILL, "aged"),
        # Ranks whose chunk is full hold half of the tokens or more: the others add little.
        ((CUT, DECODES), Wait(since=0), UNIFIED, "saturated"),
        ((CUT, PROMPT), Wait(since=0), UNIFIED, "saturated"),
        ((CUT, PROMPT, PROMPT), Wait(since=0), UNIFIED, "rest"),
        ((CUT, IDLE), Wait(), PREFILL, "saturated"),
        # Waits are bounded, tighter while a prompt is half done.
        ((QUEUES, DECODES), Wait(waited=29, since=29), UNIFIED, "fill"),
        ((QUEUES, DECODES), Wait(waited=30, since=30), UNIFIED, "timeout"),
        ((QUEUES, DECODES._replace(begun=1)), Wait(waited=6, since=6), UNIFIED, "fill"),
        ((QUEUES, DECODES._replace(begun=1)), Wait(waited=7, since=7), UNIFIED, "timeout"),
        ((PROMPT, PROMPT), Wait(waited=3, since=3), Bounds(3, 9, fuses=False), "timeout"),
        # Nothing decodes: there is nothing to hide a wait behind …
        ((ALONE, IDLE), Wait(since=0), UNIFIED, "idle"),
        ((ALONE._replace(running=4), IDLE), Wait(since=0), UNIFIED, "idle"),
        # … and role=prefill waits for prompts that come almost together.
        ((ALONE, IDLE), Wait(), PREFILL, "fuse"),
        ((ALONE, IDLE), Wait(waited=FUSE - 1), PREFILL, "fuse"),
        ((ALONE, IDLE), Wait(waited=FUSE), PREFILL, "fused"),
        ((ALONE, ALONE), Wait(), PREFILL, "fused"),
        # Passes with prompts are apart.
        ((PROMPT, PROMPT), Wait(since=0), UNIFIED, "rest"),
        ((PROMPT, DECODES._replace(kv_low=1)), Wait(since=0), UNIFIED, "rest"),
        ((PROMPT, PROMPT), Wait(since=0), Bounds(30, 0, fuses=False), "drained"),
        # The pass computes all that there is: who waited would wait for strangers.
        ((PROMPT, DECODES), RESTED, UNIFIED, "drained"),
        ((PROMPT, PROMPT), RESTED, UNIFIED, "drained"),
        ((CUT, PROMPT, PROMPT), RESTED, UNIFIED, "drained"),
        # Prompts queue for slots: the longer the wait, the fuller the pass.
        ((QUEUES, DECODES), RESTED, UNIFIED, "fill"),
        ((DECODES._replace(pending_tokens=900), PROMPT), RESTED, UNIFIED, "fill"),
        ((QUEUES, PROMPT._replace(kv_low=1)), RESTED, UNIFIED, "low"),
        ((QUEUES, QUEUES), Wait(1, since=1, peak=8, idle=8 * EXTRA - 1), UNIFIED, "fill"),
        ((QUEUES, QUEUES), Wait(1, since=1, peak=8, idle=8 * EXTRA), UNIFIED, "worth"),
        ((QUEUES, QUEUES), Wait(9, since=9, peak=8, stalled=9), UNIFIED, "fill"),
        ((QUEUES, QUEUES), Wait(10, since=10, peak=8, stalled=10), UNIFIED, "stalled"),
        # dp 1: the same rule, over the rank's own row.
        ((PROMPT,), Wait(since=0), UNIFIED, "rest"),
        ((PROMPT,), RESTED, UNIFIED, "drained"),
        ((CUT,), Wait(since=0), UNIFIED, "saturated"),
        ((QUEUES,), RESTED, UNIFIED, "fill"),
    ],
)
def test_the_table(rows, wait, bounds, reason):
    peak = max(wait.peak, sum(row.running for row in rows))
    assert judge(rows, wait._replace(peak=peak), bounds) == reason


def verdicts(bounds: Bounds, *passes: tuple[SyncRow, ...]) -> list[tuple[str, int]]:
    delayer = Delayer(bounds)
    return [delayer.decide(rows)[1:] for rows in passes]


def test_below_capacity_passes_with_prompts_are_apart():
    assert verdicts(UNIFIED, *[(PROMPT, DECODES)] * 5) == [
        ("drained", 0),
        ("rest", 1),
        ("drained", 1),
        ("rest", 1),
        ("drained", 1),
    ]


def test_a_prompt_that_comes_after_a_while_runs_at_once():
    quiet = [(DECODES, DECODES)] * 2
    assert verdicts(UNIFIED, (PROMPT, DECODES), *quiet, (DECODES, PROMPT)) == [
        ("drained", 0),
        ("nothing", 0),
        ("nothing", 0),
        ("drained", 0),
    ]


def test_with_a_queue_a_wait_ends_when_idle_slots_have_cost_a_pass():
    """128 requests decode; four end in each pass, and their slots wait for prompts."""
    freed = [SyncRow(1, 128 - n, n * 25, 9000, 128 - n) for n in range(0, 60, 4)]
    found = verdicts(UNIFIED, *[(row,) for row in freed])
    # 4 + 8 + … + 4·11 = 264 row-passes are idle; a pass with prompts costs as much as 2 · 128.
    waits = [("fill", n) for n in range(1, 11)]
    assert found[:12] == [("nothing", 0), *waits, ("worth", 10)]
    assert found[12:] == [("rest", 1), ("fill", 2), ("fill", 3)]


def test_a_wait_ends_when_nothing_is_added():
    rows = (QUEUES, DECODES)
    waits = [("fill", n) for n in range(1, 11)]
    assert verdicts(UNIFIED, *[rows] * 11) == [*waits, ("stalled", 10)]


def test_tokens_are_summed_so_that_quiet_ranks_add_up():
    """A rank that has a little more each time keeps the others waiting; the largest alone would
    have stalled."""
    growing = [(QUEUES, PROMPT._replace(prompt_tokens=n, pending_tokens=n)) for n in range(1, 31)]
    assert verdicts(UNIFIED, *growing, growing[-1])[-2:] == [("fill", 30), ("timeout", 30)]


def test_turns_of_decode_rows_neither_end_a_wait_nor_count():
    turn = DECODES._replace(pending_tokens=900)
    passes = [(QUEUES, DECODES), (turn, DECODES), (QUEUES, DECODES)]
    assert verdicts(UNIFIED, *passes) == [("fill", 1), ("nothing", 1), ("fill", 2)]


def test_prompts_that_come_almost_together_share_a_pass_on_role_prefill():
    """sglang #23588: four prompts on four ranks took two passes."""
    first, second, both = (ALONE, *[IDLE] * 3), (ALONE, ALONE, IDLE, IDLE), (ALONE,) * 4
    assert verdicts(PREFILL, first, second, both) == [("fuse", 1), ("fuse", 2), ("fused", 2)]


def test_a_lone_prompt_on_role_prefill_waits_for_three_paced_passes():
    lone = (ALONE, IDLE)
    assert verdicts(PREFILL, *[lone] * 4)[-1] == ("fused", FUSE)


# ---- what went wrong elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize("others", [DECODES, IDLE, PROMPT])
def test_chunks_and_the_delayer_do_not_feed_back(others):
    """sglang #35241: a rank that is a chunk behind makes all later chunks wait for the timeout.

    Here no chunk but a prompt's last waits, whatever the other ranks have, and that one by one
    pass: a prompt of 20 chunks takes 21 passes, whether or not ranks are in step.
    """
    prompt = [(CUT, others)] * 19 + [(PROMPT._replace(begun=1), others)] * 2
    found = [reason for reason, _ in verdicts(UNIFIED, (PROMPT, others), *prompt)]
    assert found == ["drained", *["saturated"] * 19, "rest", "drained"]


def test_a_mix_that_persists_is_not_vetoed():
    """sglang #29898: where a rank always has a prompt and another never, 97% waited."""
    found = verdicts(UNIFIED, *[(CUT, DECODES)] * 100, *[(PROMPT, DECODES)] * 100)
    reasons = [reason for reason, _ in found]
    assert reasons.count("saturated") == 100
    assert reasons.count("rest") == 50


rows = st.builds(
    SyncRow,
    pass_id=st.just(1),
    decode_tokens=st.integers(0, 3),
    prompt_tokens=st.integers(0, 3),
    pending_tokens=st.integers(0, 6),
    running=st.integers(0, 4),
    begun=st.integers(0, 1),
    kv_low=st.integers(0, 1),
    cut=st.integers(0, 1),
)


@given(
    st.lists(st.lists(rows, min_size=2, max_size=2), max_size=60),
    st.builds(Bounds, st.integers(1, 9), st.integers(0, 12), st.booleans()),
)
def test_no_wait_is_longer_than_its_bound_whatever_comes(passes, bounds):
    delayer = Delayer(bounds)
    for gathered in passes:
        verdict = delayer.decide(gathered)
        prompts = sum(row.prompt_tokens for row in gathered)
        assert verdict.runs == (verdict.reason not in WAITS)
        assert verdict.waited <= bounds.max_ticks
        if verdict.reason != "nothing" and any(row.begun for row in gathered):
            assert verdict.runs or verdict.waited <= bounds.tight
        if not prompts:
            assert verdict.runs


@given(st.lists(st.lists(rows, min_size=3, max_size=3), max_size=30))
def test_all_ranks_decide_alike_and_the_order_of_ranks_does_not_matter(passes):
    one, other = Delayer(UNIFIED), Delayer(UNIFIED)
    for gathered in passes:
        assert one.decide(gathered) == other.decide(gathered[::-1])
    assert one == other


@pytest.mark.parametrize(
    ("role", "dp", "enabled", "there"),
    [
        ("unified", 1, None, False),
        ("unified", 2, None, True),
        ("prefill", 2, None, True),
        ("decode", 2, None, False),
        ("decode", 2, True, False),
        ("unified", 1, True, True),
        ("unified", 2, False, False),
    ],
)
def test_where_there_is_a_delayer(role, dp, enabled, there):
    config = EngineConfig(
        role=role, parallelism=ParallelConfig(dp=dp), delayer=DelayerConfig(enabled=enabled)
    )
    delayer = Delayer.of(config)
    assert (delayer is not None) == there
    if delayer is not None:
        assert delayer.bounds == Bounds(30, 1, fuses=role == "prefill")
