"""The delayer's table, row by row (docs/data-parallel.md), and what must hold over many passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.config import DelayerConfig, EngineConfig, ParallelConfig
from pds_engine.scheduler.dp.delayer import FUSE, RUN, WAITS, Bounds, Delayer, Wait, judge
from pds_engine.scheduler.dp.rows import SyncRow

BOUNDS = Bounds(max_ticks=30, rest_ticks=1, align=0.5)
IDLE = SyncRow(1, fixed=60)
DECODES = IDLE._replace(decode_tokens=4, running=4)
PROMPT = DECODES._replace(prompt_tokens=100, pending_tokens=100)
ALONE = IDLE._replace(prompt_tokens=100, pending_tokens=100)
"""A prompt where nothing decodes."""
LONG = PROMPT._replace(price=60)
"""A prompt whose tokens take as long as six passes without prompts."""
QUEUES = PROMPT._replace(pending_tokens=900, queued=1)
"""Further prompts wait for a slot."""
WAITING = DECODES._replace(pending_tokens=900, queued=1)
"""All of them wait for one."""
CUT = PROMPT._replace(pending_tokens=900, cut=1)
"""The chunk is full: another prompt has a slot, and gets no token."""
BEGUN = PROMPT._replace(begun=1)
DONE = Wait(cost=RUN)
"""A pass with prompts has just run."""
RESTED = Wait(since=1, cost=RUN)


@pytest.mark.parametrize(
    ("rows", "wait", "reason"),
    [
        # No rank has a prompt to compute, though one may have some that wait for slots.
        ((IDLE, IDLE), Wait(), "nothing"),
        ((DECODES, WAITING), DONE, "nothing"),
        # A rank's clock says that a prompt is old: whatever else.
        ((QUEUES, DECODES._replace(aged=1)), DONE, "aged"),
        ((ALONE._replace(aged=1), IDLE), Wait(), "aged"),
        # Ranks whose chunk is full hold half of the tokens or more, and are no fewer than those
        # that queue: the others add little.
        ((CUT, DECODES), DONE, "saturated"),
        ((CUT, PROMPT), DONE, "saturated"),
        ((CUT, PROMPT, PROMPT), DONE, "rest"),
        ((CUT, WAITING), DONE, "saturated"),
        ((CUT, WAITING, WAITING), DONE, "rest"),
        ((CUT, WAITING, CUT._replace(queued=1)), DONE, "saturated"),
        ((CUT._replace(decode_tokens=0, running=0), IDLE), Wait(), "saturated"),
        # Waits are bounded, tighter while a prompt is half done.
        ((QUEUES, DECODES), Wait(waited=29, since=29, peak=9), "fill"),
        ((QUEUES, DECODES), Wait(waited=30, since=30, peak=9), "timeout"),
        ((QUEUES, DECODES._replace(begun=1)), Wait(waited=14, since=14, peak=9), "fill"),
        ((QUEUES, DECODES._replace(begun=1)), Wait(waited=15, since=15, peak=9), "timeout"),
        # Requests decode, but none in this pass: a stage would run dry.
        ((ALONE._replace(running=4), IDLE), DONE, "idle"),
        # Nothing decodes: prompts that come almost together share a pass.
        ((ALONE, IDLE), DONE, "fuse"),
        ((ALONE, IDLE), Wait(waited=FUSE, stalled=FUSE - 1), "fuse"),
        ((ALONE, IDLE), Wait(waited=FUSE, stalled=FUSE), "fused"),
        ((ALONE, IDLE), Wait(waited=10), "fused"),
        ((ALONE, ALONE), Wait(), "fused"),
        ((ALONE._replace(begun=1), IDLE), Wait(), "fused"),
        # Passes with prompts that took long are apart.
        ((PROMPT, PROMPT), DONE, "rest"),
        ((BEGUN, DECODES), DONE, "rest"),
        ((PROMPT, DECODES._replace(kv_low=1)), DONE, "rest"),
        ((PROMPT, PROMPT), Wait(cost=RUN - 1), "aligned"),
        ((PROMPT, PROMPT), Wait(cost=RUN, behind=(2999, 0)), "rest"),
        ((PROMPT, PROMPT), Wait(cost=RUN, behind=(0, 3000)), "aligned"),
        # All ranks have prompts.
        ((PROMPT, PROMPT), RESTED, "aligned"),
        ((QUEUES, QUEUES), RESTED, "aligned"),
        # None queues: a prompt waits for those of other ranks as long as its own tokens are worth,
        # unless it is half done.
        ((PROMPT, DECODES), RESTED, "drained"),
        ((LONG, DECODES), RESTED, "align"),
        ((LONG, DECODES), Wait(waited=2, since=2), "align"),
        ((LONG, DECODES), Wait(waited=3, since=3), "drained"),
        ((LONG._replace(begun=1), DECODES), RESTED, "drained"),
        ((LONG, DECODES._replace(begun=1)), RESTED, "drained"),
        ((CUT, PROMPT, PROMPT, DECODES), RESTED, "drained"),
        # Prompts queue for slots: the longer the wait, the fuller the pass, until the decode rows
        # that it lacks cost what the pass does.
        ((QUEUES, DECODES), Wait(since=1, peak=8, lacking=47), "fill"),
        ((QUEUES, DECODES), Wait(since=1, peak=8, lacking=48), "worth"),
        ((LONG, WAITING), Wait(since=1, peak=8, lacking=95), "fill"),
        ((LONG, WAITING), Wait(since=1, peak=8, lacking=96), "worth"),
        ((PROMPT._replace(kv_low=1), WAITING), Wait(since=1, peak=8), "low"),
        ((QUEUES, DECODES), Wait(9, since=9, peak=8, stalled=9), "fill"),
        ((QUEUES, DECODES), Wait(10, since=10, peak=8, stalled=10), "stalled"),
        # dp 1: the same rule, over the rank's own row.
        ((PROMPT,), DONE, "rest"),
        ((PROMPT,), RESTED, "aligned"),
        ((CUT,), DONE, "saturated"),
    ],
)
def test_the_table(rows, wait, reason):
    assert judge(rows, wait, BOUNDS) == reason


def verdicts(bounds: Bounds, *passes: tuple[SyncRow, ...]) -> list[tuple[str, int]]:
    delayer = Delayer(bounds)
    return [delayer.decide(rows)[1:] for rows in passes]


def test_below_capacity_passes_with_prompts_are_apart():
    assert verdicts(BOUNDS, *[(PROMPT, DECODES)] * 5) == [
        ("drained", 0),
        ("rest", 1),
        ("drained", 1),
        ("rest", 1),
        ("drained", 1),
    ]


def test_cheap_passes_rest_only_when_several_have_run():
    """Each adds a pass's time; so rests add a third to the time of prompts at most."""
    cheap = (PROMPT._replace(fixed=10), DECODES._replace(fixed=10))
    found = [reason for reason, _ in verdicts(BOUNDS, *[cheap] * 8)]
    assert found == [*["drained"] * 3, "rest", *["drained"] * 3, "rest"]


def test_there_are_no_rests_where_a_rank_is_behind():
    """Its prompts add six passes each time: after 50 times it is 300 passes behind, and the rest
    after that one is left out. When it has caught up, rests begin anew."""
    behind = BEGUN._replace(pending_tokens=900)
    found = [reason for reason, _ in verdicts(BOUNDS, *[(behind, DECODES)] * 120)]
    assert found[:99] == [*["drained", "rest"] * 49, "drained"]
    assert found[99:] == ["drained"] * 21
    passes = [*[(behind, DECODES)] * 120, (BEGUN, DECODES), *[(behind, DECODES)] * 2]
    assert [reason for reason, _ in verdicts(BOUNDS, *passes)][-3:] == [
        "drained",
        "rest",
        "drained",
    ]


def test_a_prompt_that_comes_after_a_while_runs_at_once():
    quiet = [(DECODES, DECODES)] * 2
    assert verdicts(BOUNDS, (PROMPT, DECODES), *quiet, (DECODES, PROMPT)) == [
        ("drained", 0),
        ("nothing", 0),
        ("nothing", 0),
        ("drained", 0),
    ]


def test_with_a_queue_a_wait_ends_when_idle_slots_have_cost_a_pass():
    """128 requests decode; four end in each pass, and their slots wait for prompts."""
    freed = [DECODES._replace(running=128 - n, prompt_tokens=n * 25) for n in range(0, 60, 4)]
    passes = [(row, WAITING._replace(running=0)) for row in freed]
    waits = [("fill", n) for n in range(1, 20)]
    # 4 + 8 + … + 4·19 = 760 decode rows were lacking; the pass costs as much as 6 · 128 = 768.
    assert verdicts(BOUNDS, *passes) == [("nothing", 0), *waits[:14]]
    longer = [
        (DECODES._replace(running=128 - n, prompt_tokens=9), WAITING) for n in range(0, 84, 4)
    ]
    assert verdicts(BOUNDS._replace(max_ticks=90), *longer)[-2:] == [("fill", 20), ("worth", 20)]


def test_a_wait_ends_when_nothing_is_added():
    waits = [("fill", n) for n in range(1, 11)]
    assert verdicts(BOUNDS, *[(QUEUES, DECODES)] * 11) == [*waits, ("stalled", 10)]


def test_tokens_are_summed_so_that_quiet_ranks_add_up():
    """A rank that has a little more each time keeps the others waiting; the largest alone would
    have stalled."""
    growing = [(QUEUES, PROMPT._replace(prompt_tokens=n), DECODES) for n in range(1, 31)]
    assert verdicts(BOUNDS, *growing, growing[-1])[-2:] == [("fill", 30), ("timeout", 30)]


def test_turns_of_decode_rows_neither_end_a_wait_nor_count():
    passes = [(QUEUES, DECODES), (WAITING, DECODES), (QUEUES, DECODES)]
    assert verdicts(BOUNDS, *passes) == [("fill", 1), ("nothing", 1), ("fill", 2)]


def test_prompts_that_come_almost_together_share_a_pass():
    """sglang #23588: four prompts on four ranks took two passes."""
    first, second, all_four = (ALONE, *[IDLE] * 3), (ALONE, ALONE, IDLE, IDLE), (ALONE,) * 4
    assert verdicts(BOUNDS, first, second, all_four) == [("fuse", 1), ("fuse", 2), ("fused", 2)]


def test_a_lone_prompt_waits_for_two_paced_passes():
    assert verdicts(BOUNDS, *[(ALONE, IDLE)] * 3) == [("fuse", 1), ("fuse", 2), ("fused", 2)]


# ---- what went wrong elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize("others", [DECODES, PROMPT, IDLE, WAITING])
def test_chunks_and_the_delayer_do_not_feed_back(others):
    """sglang #35241: a rank that is a chunk behind made all later chunks wait for the timeout.

    Here a chunk waits for one pass, if prompts queue for slots for 15: never for a rank's step.
    """
    found = verdicts(BOUNDS, *[(LONG._replace(begun=1), others)] * 64)
    waits = [waited for _, waited in found]
    assert max(waits) <= (15 if others.queued else 1)


@pytest.mark.parametrize("others", [DECODES, PROMPT, IDLE])
def test_full_chunks_never_wait(others):
    found = verdicts(BOUNDS, *[(CUT._replace(begun=1), others)] * 64)
    assert found == [("saturated", 0)] * 64


def test_a_mix_that_persists_is_not_vetoed():
    """sglang #29898: where a rank always has a prompt and another never, 97% waited."""
    reasons = [reason for reason, _ in verdicts(BOUNDS, *[(PROMPT, DECODES)] * 100)]
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
    queued=st.integers(0, 1),
    price=st.integers(0, 640),
    fixed=st.integers(0, 640),
)
bounds = st.builds(Bounds, st.integers(1, 9), st.integers(0, 12), st.floats(0, 4))


@given(st.lists(st.lists(rows, min_size=2, max_size=2), max_size=60), bounds)
def test_no_wait_is_longer_than_its_bound_whatever_comes(passes, bounds):
    delayer = Delayer(bounds)
    for gathered in passes:
        verdict = delayer.decide(gathered)
        assert verdict.runs == (verdict.reason not in WAITS)
        assert verdict.waited <= bounds.max_ticks
        if any(row.begun for row in gathered) and not verdict.runs:
            assert verdict.waited <= bounds.tight
        if not any(row.prompt_tokens for row in gathered):
            assert verdict.runs


@given(st.lists(st.lists(rows, min_size=3, max_size=3), max_size=30))
def test_all_ranks_decide_alike_and_the_order_of_ranks_does_not_matter(passes):
    one, other = Delayer(BOUNDS), Delayer(BOUNDS)
    for gathered in passes:
        assert one.decide(gathered) == other.decide(gathered[::-1])
    assert one.wait == other.wait._replace(behind=other.wait.behind[::-1])


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
    assert delayer is None or delayer.bounds == BOUNDS
