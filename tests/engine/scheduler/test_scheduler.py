"""What one scheduler sends, line by line (scheduling/bench.py says how to read them)."""

import math
from typing import Any

import pytest
from pds_engine.errors import GroupError, ProtocolError, RankLost, StageTimeout
from pds_engine.messages import Drain, Fault, KvEndpoint, Ready, StepDone, TokenLogprobs, Welcome
from pds_engine.scheduler.party import WORKERS, Party
from scheduling.bench import MakeBench

SERVER = Party("server", "s")


def test_a_request_from_its_first_chunk_to_its_last_token(bench: MakeBench) -> None:
    b = bench()
    assert b.submit("r", 47, max_tokens=3) == []
    assert b.plan() == [
        "workers admit 0/1 [0,1,2]",
        "workers step 0: 0:0+32 <- -1",
        "workers step 1: 0:32+15* <- -1",  # a chunk reads no token: it follows at once
    ]
    assert b.done(0) == []
    assert b.plan() == ["workers step 2: 0:47+1* <- 1"]
    assert b.done(1, 7) == ["s token r 0=7"]
    assert b.plan() == ["workers step 3: 0:48+1*(3) <- 2"]
    assert b.done(2, 8) == ["s token r 1=8"]
    assert b.plan() == []  # all of its output is planned
    assert b.done(3, 9) == ["s token r 2=9 length", "workers release 0/1 after 3"]
    assert b.free == 64


def prompt_scores(step: int, *rows: tuple[float, ...], token: int | None = None) -> StepDone:
    scores = tuple(tuple(TokenLogprobs(value, ()) for value in row) for row in rows)
    tokens = () if token is None else (token,)
    return StepDone(step_id=step, tokens=tokens, logprobs=(), elapsed=0.0, prompt_logprobs=scores)


def test_prompt_logprobs_go_with_the_first_token_and_no_stage_reads_them(bench: MakeBench) -> None:
    b = bench(pp=2)
    b.submit("r", 70, max_tokens=9, prompt_logprobs=0)
    assert b.plan() == [
        "workers admit 0/1 [0,1,2,3,4]",
        "workers step 0: 0:0+32? <- -1",  # a middle chunk sends no output, scored or not
        "workers step 1: 0:32+32? <- -1",
        "workers step 2: 0:64+6*? <- -1 sends",
    ]
    first = tuple(map(float, range(32)))
    assert b.handle(WORKERS, prompt_scores(0, first)) == []
    assert b.handle(WORKERS, prompt_scores(1, tuple(x + 32 for x in first))) == []
    (sent,) = b.core.handle(WORKERS, prompt_scores(2, first[:5], token=7), b.now)
    values = [one.chosen for one in sent.message.prompt_logprobs]
    assert values == [*range(64), *range(5)]
    b.plan()
    (sent,) = b.core.handle(WORKERS, StepDone(step_id=3, tokens=(8,), logprobs=(), elapsed=0.0), 1)
    assert sent.message.prompt_logprobs == ()


def test_the_last_token_of_a_prompt_has_no_next_one_to_score(bench: MakeBench) -> None:
    b = bench()
    b.submit("one", 1, max_tokens=1, prompt_logprobs=3)
    assert b.plan()[1] == "workers step 0: 0:0+1* <- -1"
    b.submit("resumed", 40, max_tokens=9, prompt_logprobs=3, output_ids=(5, 6))
    assert b.plan()[1:] == ["workers step 1: 1:0+32 <- -1"]


def test_scores_that_were_not_asked_for_end_the_group(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 8, max_tokens=1)
    b.plan()
    with pytest.raises(ProtocolError, match="step 0 scores 0 prompts, its result has 1"):
        b.handle(WORKERS, prompt_scores(0, (1.0,), token=3))


def test_prompts_and_running_requests_share_a_step(bench: MakeBench) -> None:
    b = bench()
    b.submit("a", 5, max_tokens=9)
    b.submit("b", 80, max_tokens=9)
    assert b.plan() == [
        "workers admit 0/1 [0]",
        "workers admit 1/1 [1,2,3,4,5]",
        "workers step 0: 0:0+5* 1:0+16 <- -1",  # 27 tokens are left of the chunk: one page
        "workers step 1: 0:5+1* 1:16+32 <- 0",
    ]
    b.done(0, 7)
    assert b.plan() == ["workers step 2: 0:6+1* 1:48+32* <- 1"]
    b.done(1, 7)
    assert b.plan() == ["workers step 3: 0:7+1* 1:80+1*(6) <- 2"]


def test_tokens_planned_past_a_stop_are_dropped_and_their_pages_wait(bench: MakeBench) -> None:
    b = bench(pages=4)
    b.submit("r", 16, max_tokens=40, stop_token_ids=(2,))
    b.plan()
    assert b.done(0, 2) == ["s token r 0=2 stop", "workers release 0/1 after 1"]
    assert b.free == 2  # step 1 still writes the slot's pages
    b.submit("next", 49, max_tokens=1)
    assert b.plan() == []
    assert b.done(1, 5) == []
    assert b.plan() == [
        "workers admit 0/2 [1,0,2,3]",
        "workers step 2: 0:0+32 <- -1",
        "workers step 3: 0:32+17* <- -1",
    ]


def test_a_cancelled_request_is_silent_from_then_on(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=9)
    b.plan()
    assert b.cancel("r") == ["workers release 0/1 after 1"]
    assert b.cancel("r") == []
    assert (b.done(0, 7), b.done(1, 7)) == ([], [])
    assert b.plan() == []
    assert b.free == 64


def test_one_server_cannot_cancel_anothers_request(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=1)
    assert b.lost(Party("server", "other")) == []
    assert len(b.plan()) == 2
    assert b.lost(SERVER) == ["workers release 0/1 after 0"]


def test_given_tokens_are_computed_and_counted(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 30, max_tokens=4, output_ids=(7, 8))
    assert b.plan() == [
        "workers admit 0/1 [0,1]",
        "workers step 0: 0:0+32* <- -1",
        "workers step 1: 0:32+1*(2) <- 0",
    ]
    assert b.done(0, 9) == ["s token r 2=9"]
    assert b.done(1, 9) == ["s token r 3=9 length", "workers release 0/1 after 1"]


def test_chunks_flow_through_a_pipeline(bench: MakeBench) -> None:
    b = bench(pp=2)
    b.submit("r", 90, max_tokens=3)
    assert b.plan() == [
        "workers admit 0/1 [0,1,2,3,4,5]",
        "workers step 0: 0:0+32 <- -1",
        "workers step 1: 0:32+32 <- -1",
        "workers step 2: 0:64+26* <- -1 sends",
    ]
    b.done(0)
    assert b.plan() == ["workers step 3: 0:90+1* <- 2 sends"]  # nothing else could be planned
    b.done(1)
    assert b.plan() == ["workers step 4: 0:91+1* <- 3"]  # its last token: nobody reads it
    b.done(2, 7)
    assert b.plan() == []


def test_running_requests_are_spread_over_the_stages(bench: MakeBench) -> None:
    b = bench(pp=2, max_running=4)
    for name in "abc":
        b.submit(name, 5, max_tokens=50)
    assert b.plan()[-3:] == [
        "workers step 0: 0:0+5* 1:0+5* 2:0+5* <- -1 sends",
        "workers step 1: 0:5+1* 1:5+1* <- 0 sends",  # nothing else: 2 = ceil(3 / 2) of them
        "workers step 2: 2:5+1* <- 0 sends",  # sampled two steps ago; slot 0 in the last one
    ]
    b.done(0, 7, 7, 7)
    assert b.plan() == ["workers step 3: 0:6+1* 1:6+1* <- 1 sends"]
    b.done(1, 7, 7)
    assert b.plan() == ["workers step 4: 2:6+1* <- 2 sends"]


def test_a_long_prompt_amid_running_requests_is_not_held_up(bench: MakeBench) -> None:
    b = bench(pp=2)
    for name in "ab":
        b.submit(name, 5, max_tokens=50)
    b.plan()
    b.submit("long", 160, max_tokens=2)
    steps = []
    for step in range(6):
        b.done(step, *(7,) * len(b.core.steps.in_flight[0].samplers))
        steps += [line for line in b.plan() if "step" in line]
    chunks = [line.split(" 2:")[1].split()[0] for line in steps if " 2:" in line]
    assert chunks[:5] == ["0+32", "32+32", "64+32", "96+32", "128+32*"]
    assert len(steps) == 6  # one chunk in each step from the first on


def test_without_the_skip_every_step_of_a_pipeline_sends(bench: MakeBench) -> None:
    b = bench(pp=2, skip_output=False)
    b.submit("r", 40, max_tokens=1)
    assert b.plan()[1:] == [
        "workers step 0: 0:0+32 <- -1 sends",
        "workers step 1: 0:32+8* <- 0 sends",
    ]


def test_requests_wait_in_order_for_pages(bench: MakeBench) -> None:
    b = bench(pages=6)
    b.submit("big", 64, max_tokens=1)
    b.submit("bigger", 48, max_tokens=1)
    b.submit("small", 5, max_tokens=1)  # would fit, but does not overtake
    assert [line for line in b.plan() if "admit" in line] == ["workers admit 0/1 [0,1,2,3]"]
    b.done(0)
    b.done(1, 7)
    admitted = [line for line in b.plan() if "admit" in line]
    assert admitted == ["workers admit 0/2 [3,2,1]", "workers admit 1/1 [0]"]


def test_without_preemption_growth_is_promised_before_a_request_is_admitted(
    bench: MakeBench,
) -> None:
    b = bench(pages=6, preemption="none")
    b.submit("a", 16, max_tokens=49)  # 4 pages in all
    b.submit("b", 16, max_tokens=33)  # 3
    assert [line for line in b.plan() if "admit" in line] == ["workers admit 0/1 [0]"]
    assert b.free == 4  # of 6: a has two, and two more are promised to it


def test_a_smaller_priority_number_is_served_sooner(bench: MakeBench) -> None:
    b = bench(max_running=1, max_step_tokens=48)
    b.submit("a", 5, max_tokens=1)
    b.submit("b", 6, max_tokens=1, priority=-1)
    assert b.plan()[1] == "workers step 0: 0:0+6* <- -1"


@pytest.mark.parametrize(
    ("prompt", "sampling", "line"),
    [
        (0, {"max_tokens": 1}, "s failed r 400 invalid_request"),
        (5, {"max_tokens": 0}, "s failed r 400 invalid_request"),
        (5, {"max_tokens": 2, "output_ids": (1, 2)}, "s failed r 400 invalid_request"),
        (4000, {"max_tokens": 97}, "s failed r 400 context_length_exceeded"),
        (1000, {"max_tokens": 26}, "s failed r 400 context_length_exceeded"),  # 65 pages
    ],
)
def test_what_could_never_be_served(
    bench: MakeBench, prompt: int, sampling: dict[str, Any], line: str
) -> None:
    b = bench(pages=64)
    assert b.submit("r", prompt, **sampling) == [line]
    assert b.submit("fits", 1000, max_tokens=25) == []  # 1024 positions: 64 pages


def test_a_full_queue_answers_429(bench: MakeBench) -> None:
    b = bench(max_waiting=1)
    b.submit("a", 5, max_tokens=1)
    assert b.submit("b", 5, max_tokens=1) == ["s failed b 429 overloaded"]
    b.plan()
    assert b.submit("b", 5, max_tokens=1) == []


def test_without_a_queue_a_free_slot_is_needed(bench: MakeBench) -> None:
    b = bench(max_waiting=0, max_running=1, max_step_tokens=48)
    assert b.submit("a", 5, max_tokens=1) == []
    b.plan()
    assert b.submit("b", 5, max_tokens=1) == ["s failed b 429 overloaded"]


def test_above_dp_1_what_was_bound_to_this_rank_is_not_refused(bench: MakeBench) -> None:
    """The group's queue is bounded where it is: several may be bound before this rank plans."""
    b = bench(max_waiting=0, dp=2)
    assert [b.submit(name, 5, max_tokens=1) for name in "abc"] == [[], [], []]


def test_an_id_is_used_once_at_a_time(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=1)
    assert b.submit("r", 5, max_tokens=1) == ["s failed r 400 invalid_request"]
    b.plan()
    b.done(0, 7)
    assert b.submit("r", 5, max_tokens=1) == []


def test_draining_takes_nothing_new_and_ends_what_is_late(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=9)
    b.plan()
    b.handle(SERVER, Drain(deadline_seconds=10))
    assert b.submit("s", 5, max_tokens=1) == ["s failed s 503 unavailable"]
    assert b.done(0, 7) == ["s token r 0=7"]
    assert b.tick(109.9) == []
    assert b.tick(110.0) == ["s failed r 503 drained", "workers release 0/1 after 1"]
    assert (b.core.state(110.0).draining, b.core.state(110.0).in_flight) == (True, 0)


def test_of_two_drains_the_earlier_deadline_counts(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=9)
    b.plan()
    for seconds in (10, math.inf):
        b.handle(SERVER, Drain(deadline_seconds=seconds))
    assert b.tick(109.9) == []
    assert b.tick(110.0)[0] == "s failed r 503 drained"


def test_a_deadline_passed_fails_the_request(bench: MakeBench) -> None:
    b = bench(max_running=1, max_step_tokens=48)
    b.submit("runs", 5, max_tokens=9, deadline=101.0)
    b.submit("waits", 5, max_tokens=9, deadline=101.0)
    b.plan()
    assert b.tick(100.9) == []
    assert b.tick(101.0) == [
        "s failed runs 504 deadline_passed",
        "workers release 0/1 after 1",
        "s failed waits 504 deadline_passed",
    ]


def test_nothing_is_taken_before_all_ranks_are_ready(bench: MakeBench) -> None:
    b = bench(tp=2, ranks=(9,))
    assert b.submit("r", 5, max_tokens=1) == ["s failed r 503 unavailable"]


def test_the_pool_is_as_large_as_the_smallest_ranks(bench: MakeBench) -> None:
    b = bench(tp=2, ranks=(9, 7))
    assert b.core.state(0.0).kv_total == 7


def test_rows_are_padded_to_whole_tensor_parallel_shares(bench: MakeBench) -> None:
    b = bench(tp=4)
    b.submit("r", 5, max_tokens=1)
    plan = b.core.plan(b.now)[-1].message
    assert (plan.padded_tokens, len(plan.rows)) == (8, 1)


def test_logprobs_pass_through(bench: MakeBench) -> None:
    b = bench()
    b.submit("r", 5, max_tokens=1, logprobs=1)
    b.plan()
    scores = TokenLogprobs(-0.5, ((7, -0.5),))
    message = StepDone(step_id=0, tokens=(7,), logprobs=(scores,), elapsed=0.0)
    assert b.core.handle(WORKERS, message, b.now)[0].message.logprobs == scores


def test_the_state_counts_what_is_there(bench: MakeBench) -> None:
    b = bench(max_running=1, max_step_tokens=48)
    b.submit("runs", 40, max_tokens=9)
    b.submit("waits", 5, max_tokens=9)
    b.plan()
    b.done(0)
    state = b.core.state(100.5)
    assert (state.in_flight, state.running, state.queued_tokens) == (2, 1, 5)
    assert (state.kv_used, state.kv_total, state.steps_done) == (3, 64, 1)
    assert (state.oldest_step_seconds, state.ranks_ready) == (0.5, 1)


def test_a_pipeline_that_advances_is_not_timed_out(bench: MakeBench) -> None:
    b = bench(pp=2, step_timeout=60.0)
    b.submit("long", 16 * 12, max_tokens=1)
    for step in range(3):
        b.plan()
        b.now += 50.0
        b.tick(b.now)
        b.done(step)
    assert b.core.state(b.now + 7).oldest_step_seconds == 7
    with pytest.raises(StageTimeout, match=r"step 3 .* after 61.0 s"):
        b.tick(b.now + 61)


def test_what_fails_the_group(bench: MakeBench) -> None:
    b = bench()
    with pytest.raises(RankLost, match="rank 0 failed: oom"):
        b.handle(WORKERS, Fault(rank=0, code="oom", message="no memory"))
    endpoint = KvEndpoint(rank=0, shard=b"", pages=1, backends={})
    with pytest.raises(RankLost, match="rank 0 of 1 is ready, unexpectedly"):
        b.handle(WORKERS, Ready(rank=0, pages=1, kv_fingerprint="f", endpoint=endpoint))
    with pytest.raises(ProtocolError, match="step 3 is done, none was expected"):
        b.done(3)
    b.submit("r", 5, max_tokens=9)
    b.plan()
    with pytest.raises(ProtocolError, match="samples for 1 rows, its result has 0 tokens"):
        b.done(0)
    with pytest.raises(StageTimeout, match="step 0"):
        b.tick(161.0)
    with pytest.raises(GroupError, match="State is not for a scheduler"):
        b.core.handle(WORKERS, b.core.state(0.0), 0.0)


def test_a_welcome_alone_says_nothing(bench: MakeBench) -> None:
    b = bench(role="decode")
    assert b.handle(Party("prefill", "p:8001"), Welcome(incarnation="x")) == []
