"""The prefill side of a hand-over, line by line (scheduling/bench.py says how to read them)."""

from typing import Any

import pytest
from pds_engine.messages import (
    Abort,
    Cancel,
    Drain,
    PushDone,
    PushFailed,
    StepDone,
    TokenLogprobs,
)
from pds_engine.scheduler.party import WORKERS, Party
from scheduling.bench import Bench, MakeBench

SERVER, D = Party("server", "s"), Party("decode", "d")


@pytest.fixture
def p(bench: MakeBench) -> Bench:
    return bench(role="prefill")


def abort(bench: Bench, name: str, epoch: int = 1, by: Party = D) -> list[str]:
    return bench.handle(by, Abort(transfer=name, epoch=epoch, incarnation="them"))


def start(bench: Bench) -> None:
    bench.submit("r", 47, max_tokens=9)
    bench.offer("r", 47, [7, 8, 9])
    bench.plan()


def test_chunks_are_pushed_as_they_are_computed(p: Bench) -> None:
    assert p.submit("r", 47, max_tokens=9) == []
    assert p.plan() == []  # not before D holds pages for it
    assert p.offer("r", 47, [7, 8, 9]) == []
    assert p.plan() == [
        "workers open r@1",
        "workers admit 0/1 [0,1,2]",
        "workers step 0: 0:0+32 <- -1 push r [0,1]>[7,8]",
        "workers step 1: 0:32+15* <- -1 push r [2]>[9] last",
    ]
    p.done(0)
    assert p.done(1, 5) == ["s token r 0=5", "workers release 0/1 after 1"]
    assert p.core.state(0.0).transfers_in_flight == 1
    assert p.free == 61  # still being read by the push
    assert p.pushed("r") == ["d done r@1 5 None", "workers close r"]
    assert p.closed("r") == []
    assert (p.free, p.core.state(0.0).transfers_in_flight) == (64, 0)


def test_prompt_logprobs_are_in_the_closing_record_too(p: Bench) -> None:
    """A whole answer is D's to give; an answer that streams has them from P."""
    p.submit("r", 20, max_tokens=9, prompt_logprobs=0)
    p.offer("r", 20, [7, 8])
    assert p.plan()[-1] == "workers step 0: 0:0+20*? <- -1 push r [0,1]>[7,8] last"
    scores = tuple(TokenLogprobs(-float(at), ()) for at in range(19))
    done = StepDone(step_id=0, tokens=(5,), logprobs=(), elapsed=0.0, prompt_logprobs=(scores,))
    (token, _) = p.core.handle(WORKERS, done, p.now)
    assert token.message.prompt_logprobs == scores
    (record, _) = p.core.handle(
        WORKERS, PushDone(transfer="r", rank=0, bytes=1, seconds=0.1), p.now
    )
    assert record.message.prompt_logprobs == scores


def test_the_push_may_be_done_before_its_step_is_reported(p: Bench) -> None:
    start(p)
    p.done(0)
    assert p.pushed("r") == []
    assert p.done(1, 5) == [
        "s token r 0=5",
        "d done r@1 5 None",
        "workers close r",
        "workers release 0/1 after 1",
    ]


def test_every_rank_has_to_be_done(bench: MakeBench) -> None:
    p = bench(role="prefill", tp=2)
    start(p)
    p.done(0)
    p.done(1, 5)
    assert p.pushed("r", rank=1) == []
    assert p.pushed("r", rank=0) == ["d done r@1 5 None", "workers close r"]
    p.closed("r", rank=0)
    assert p.free == 61
    p.closed("r", rank=1)
    assert p.free == 64


def test_a_first_token_that_ends_the_request_is_handed_over_too(p: Bench) -> None:
    p.submit("r", 5, max_tokens=9, stop_token_ids=(2,))
    p.offer("r", 5, [7])
    p.plan()
    assert p.done(0, 2) == ["s token r 0=2 stop", "workers release 0/1 after 0"]
    assert p.pushed("r") == ["d done r@1 2 stop", "workers close r"]


def test_an_offer_may_come_before_its_request(p: Bench) -> None:
    assert p.offer("r", 5, [7]) == []
    assert p.submit("r", 5, max_tokens=9) == []
    assert p.plan()[0] == "workers open r@1"


@pytest.mark.parametrize("first", ["offer", "submit"])
def test_different_prompts_are_refused(p: Bench, first: str) -> None:
    if first == "offer":
        p.offer("r", 6, [7])
        lines = p.submit("r", 5, max_tokens=9)
    else:
        p.submit("r", 5, max_tokens=9)
        lines = p.offer("r", 6, [7])
    assert lines == ["d refused r invalid_request", "s failed r 400 invalid_request"]
    assert p.core.state(0.0).in_flight == 0


@pytest.mark.parametrize(
    "wrong",
    [{"kv_fingerprint": "other"}, {"start_token": 3}, {"start_token": 16}, {"start_token": -16}],
)
def test_offers_that_do_not_fit_are_refused(p: Bench, wrong: dict[str, Any]) -> None:
    p.submit("r", 47, max_tokens=9)
    lines = p.offer("r", 47, [7, 8, 9], **wrong)
    assert lines == ["d refused r transfer_failed", "s failed r 503 transfer_failed"]


def test_an_offer_of_nothing_is_refused(p: Bench) -> None:
    p.submit("r", 48, max_tokens=9)
    assert p.offer("r", 48, [], start_token=48)[0] == "d refused r transfer_failed"


def test_only_a_prefill_group_takes_offers(bench: MakeBench) -> None:
    assert bench().offer("r", 5, [7]) == ["d refused r transfer_failed"]


def test_an_unmatched_half_is_let_go_after_a_lease(p: Bench) -> None:
    p.offer("offered", 5, [7])
    p.submit("submitted", 5, max_tokens=9)
    assert p.tick(129.9) == ["d queued offered"]
    assert p.tick(130.0) == [
        "s failed submitted 503 transfer_failed",  # it was taken in: no group turned it away
        "d refused offered unavailable",
    ]
    assert p.core.state(0.0).in_flight == 0


def test_leases_are_renewed_three_times_a_lease(p: Bench) -> None:
    for name in ("a", "b"):
        p.submit(name, 5, max_tokens=9)
        p.offer(name, 5, [7])
    p.plan()
    assert p.tick(110.0) == ["d queued a b"]
    assert p.tick(119.9) == []
    assert p.tick(120.0) == ["d queued a b"]


def test_offers_kept_are_bounded(bench: MakeBench) -> None:
    p = bench(role="prefill", max_running=1, max_waiting=1, max_step_tokens=48)
    p.offer("a", 5, [7])
    p.offer("b", 5, [7])
    assert p.offer("c", 5, [7]) == ["d refused c unavailable"]


def test_an_offer_made_anew_takes_the_place_of_the_first(p: Bench) -> None:
    p.offer("r", 5, [7])
    assert p.offer("r", 5, [8], epoch=2) == ["d refused r transfer_failed"]
    p.submit("r", 5, max_tokens=9)
    assert p.plan()[0] == "workers open r@2"
    assert p.offer("r", 5, [9], epoch=3) == ["d refused r transfer_failed"]


def test_a_draining_group_takes_offers_for_what_it_has_accepted(p: Bench) -> None:
    p.submit("r", 5, max_tokens=9)
    p.handle(SERVER, Drain(deadline_seconds=60))
    assert p.offer("new", 5, [7]) == ["d refused new unavailable"]
    assert p.offer("r", 5, [7]) == []
    assert p.plan()[0] == "workers open r@1"


def test_an_abort_is_acknowledged_when_all_ranks_have_drained(p: Bench) -> None:
    start(p)
    assert abort(p, "r") == [
        "workers close r",
        "s failed r 503 transfer_failed",
        "workers release 0/1 after 1",
    ]
    assert p.free == 61
    assert p.closed("r") == ["d ack r@1 transfer_failed"]
    p.done(0)
    assert p.done(1, 5) == []
    assert p.free == 64


def test_an_abort_after_the_closing_record_is_acknowledged_too(p: Bench) -> None:
    start(p)
    p.done(0)
    p.done(1, 5)
    p.pushed("r")
    assert abort(p, "r") == []
    assert p.closed("r") == ["d ack r@1"]
    assert abort(p, "r") == ["d ack r@1"]  # and again, when nothing is left of it


def test_an_abort_over_a_new_connection_waits_for_the_drain_too(p: Bench) -> None:
    start(p)
    anew = Party("decode", "d, connected anew")
    assert abort(p, "r", by=anew)[0] == "workers close r"
    assert p.lost(D) == []
    assert abort(p, "r", by=anew) == []
    assert p.closed("r") == ["d, connected anew ack r@1 transfer_failed"]


def test_an_abort_finds_the_transfer_that_is_closing_behind_a_new_one(p: Bench) -> None:
    start(p)
    p.cancel("r")
    p.submit("r", 5, max_tokens=9)
    p.offer("r", 5, [7], epoch=2)
    assert abort(p, "r", epoch=1) == []
    assert p.closed("r") == ["d ack r@1 cancelled"]
    assert p.plan()[0] == "workers open r@2"


@pytest.mark.parametrize("matched", [True, False])
def test_an_abort_before_the_first_chunk_is_acknowledged_at_once(p: Bench, matched: bool) -> None:
    p.offer("r", 5, [7])
    failed = ["s failed r 503 transfer_failed"] if matched else []
    if matched:
        p.submit("r", 5, max_tokens=9)
    assert abort(p, "r") == ["d ack r@1 transfer_failed", *failed]
    assert p.plan() == []


def test_an_abort_of_an_older_epoch_is_no_abort_of_this_one(p: Bench) -> None:
    p.submit("r", 5, max_tokens=9)
    p.offer("r", 5, [7], epoch=2)
    assert abort(p, "r", epoch=1) == ["d ack r@1"]
    assert p.plan()[0] == "workers open r@2"


def test_a_cancel_in_mid_prefill_tells_d(p: Bench) -> None:
    start(p)
    assert p.cancel("r") == ["workers close r", "workers release 0/1 after 1"]
    assert p.closed("r") == ["d ack r@1 cancelled"]


def test_a_cancel_after_the_first_token_leaves_the_hand_over_alone(p: Bench) -> None:
    start(p)
    p.done(0)
    p.done(1, 5)
    assert p.handle(SERVER, Cancel(request_id="r")) == []
    assert p.pushed("r") == ["d done r@1 5 None", "workers close r"]


def test_a_rank_that_cannot_push_fails_the_request(p: Bench) -> None:
    start(p)
    assert p.handle(WORKERS, PushFailed(transfer="r", rank=0, message="reset")) == [
        "workers close r",
        "s failed r 503 transfer_failed",
        "workers release 0/1 after 1",
    ]
    assert p.closed("r", drained=False) == ["d ack r@1 transfer_failed undrained"]
    assert abort(p, "r") == ["d ack r@1  undrained"]  # nor is it drained when asked again


def test_a_lost_decode_side_is_not_written_to_any_more(p: Bench) -> None:
    start(p)
    p.offer("kept", 5, [1])
    assert p.lost(D) == [
        "workers close r",
        "s failed r 503 transfer_failed",
        "workers release 0/1 after 1",
        "d ack kept@1 transfer_failed",
    ]
    assert p.closed("r") == []


def test_an_id_is_not_opened_again_before_it_is_closed(p: Bench) -> None:
    start(p)
    p.cancel("r")
    p.submit("r", 5, max_tokens=9)
    assert p.offer("r", 5, [7], epoch=2) == []
    assert p.plan() == []
    p.closed("r")
    assert p.plan()[0] == "workers open r@2"


def test_reports_on_what_is_not_open_change_nothing(p: Bench) -> None:
    assert p.pushed("x") == []
    assert p.closed("x") == []
    assert p.handle(WORKERS, PushFailed(transfer="x", rank=0, message="")) == []
