"""The decode side of a hand-over, line by line (scheduling/bench.py says how to read them)."""

from typing import Any

import pytest
from pds_engine.errors import GroupError
from pds_engine.messages import (
    AbortAck,
    FinishReason,
    Forgotten,
    PeerGone,
    Queued,
    Refused,
    Token,
    TokenLogprobs,
    TransferDone,
    Welcome,
)
from pds_engine.scheduler.party import WORKERS, Party
from scheduling.bench import Bench, MakeBench

SERVER, P = Party("server", "s"), Party("prefill", "p:8001")
ABORTED = ["workers forget r@1", "p:8001 abort r@1"]


@pytest.fixture
def d(bench: MakeBench) -> Bench:
    return bench(role="decode")


def offered(bench: Bench, welcome: bool = True) -> Bench:
    bench.submit("r", 47, max_tokens=9)
    bench.plan()
    if welcome:
        bench.handle(P, Welcome(incarnation="them"))
    return bench


def done(bench: Bench, token: int = 5, epoch: int = 1, **more: Any) -> list[str]:
    values: dict[str, Any] = {"logprobs": None, "cached_tokens": 0, "finish_reason": None}
    return bench.handle(P, TransferDone(transfer="r", epoch=epoch, token=token, **(values | more)))


def ack(bench: Bench, epoch: int = 1, **more: Any) -> list[str]:
    return bench.handle(P, AbortAck(transfer="r", epoch=epoch, **more))


def forgotten(bench: Bench, rank: int = 0, fenced: bool = True) -> list[str]:
    return bench.handle(WORKERS, Forgotten(transfer="r", epoch=1, rank=rank, fenced=fenced))


def quarantined(bench: Bench) -> int:
    return bench.core.state(bench.now).kv_quarantined


def test_a_request_handed_over_decodes_at_once(d: Bench) -> None:
    assert d.submit("r", 47, max_tokens=4) == []
    assert d.plan() == [
        "workers expect r@1 [0,1,2]",
        "p:8001 offer r@1 [0,1,2]",
    ]
    assert d.free == 61
    assert d.core.ledger.pool.available == 60  # one more page is promised
    assert done(d, token=5) == [
        "workers forget r@1",
        "s token r 0=5",
        "workers admit 0/1 [0,1,2]",
    ]
    assert d.plan() == [
        "workers step 0: 0:47+1* <- -1",
        "workers step 1: 0:48+1*(3) <- 0",
    ]
    assert d.done(0, 6) == ["s token r 1=6"]
    assert d.plan() == ["workers step 2: 0:49+1* <- 1"]
    d.done(1, 7)
    assert d.done(2, 8) == ["s token r 3=8 length", "workers release 0/1 after 2"]
    assert d.free == 64


def test_the_first_token_brings_the_prompt_s_logprobs(d: Bench) -> None:
    d.submit("r", 3, max_tokens=4, prompt_logprobs=0)
    d.plan()
    scores = (TokenLogprobs(-1.0, ()), TokenLogprobs(-2.0, ()))
    record = TransferDone(
        transfer="r", epoch=1, token=5, logprobs=None, cached_tokens=0, finish_reason=None,
        prompt_logprobs=scores,
    )  # fmt: skip
    (token,) = (o.message for o in d.core.handle(P, record, d.now) if type(o.message) is Token)
    assert token.prompt_logprobs == scores


def test_the_page_of_the_first_token_comes_with_the_admission(d: Bench) -> None:
    d.submit("r", 48, max_tokens=4)
    d.plan()
    assert done(d)[-1] == "workers admit 0/1 [0,1,2,3]"


@pytest.mark.parametrize(
    ("token", "reason", "line"),
    [(5, "stop", "s token r 0=5 stop"), (2, None, "s token r 0=2 stop")],
)
def test_a_first_token_that_ends_the_request(
    d: Bench, token: int, reason: FinishReason | None, line: str
) -> None:
    d.submit("r", 47, max_tokens=4, stop_token_ids=(2,))
    d.plan()
    assert done(d, token=token, finish_reason=reason) == ["workers forget r@1", line]
    assert d.free == 64


def test_pages_are_offered_in_order_of_arrival_and_for_full_growth(bench: MakeBench) -> None:
    d = bench(role="decode", pages=6)
    for name in ("a", "b", "c"):
        d.submit(name, 32, max_tokens=16)  # 3 pages each, in the end
    assert [line for line in d.plan() if "offer" in line] == [
        "p:8001 offer a@1 [0,1]",
        "p:8001 offer b@2 [2,3]",
    ]


def test_a_refused_offer_frees_its_pages_at_once(d: Bench) -> None:
    offered(d)
    assert d.handle(P, Refused(transfer="r", code="x", message="no")) == [
        "workers forget r@1",
        "s failed r 503 transfer_failed",
    ]
    assert d.free == 64


def test_a_cancelled_offer_is_quarantined_until_acknowledged(d: Bench) -> None:
    offered(d)
    assert d.cancel("r") == ABORTED
    assert (d.free, quarantined(d), d.core.ledger.allocator.slots.free) == (61, 3, 4)
    assert done(d) == []  # it came too late
    assert ack(d, epoch=2) == []
    assert ack(d, drained=False) == []
    assert quarantined(d) == 3
    assert ack(d) == []
    assert (d.free, quarantined(d)) == (64, 0)
    assert ack(d) == []


def test_a_fence_on_every_rank_frees_as_well(bench: MakeBench) -> None:
    d = offered(bench(role="decode", tp=2))
    d.cancel("r")
    forgotten(d, rank=0)
    forgotten(d, rank=1, fenced=False)
    assert quarantined(d) == 3
    forgotten(d, rank=1)
    assert quarantined(d) == 0


def test_a_prefill_side_that_gives_up_fails_the_request(d: Bench) -> None:
    offered(d)
    assert ack(d, code="cancelled", message="gone") == [
        "workers forget r@1",
        "s failed r 503 transfer_failed",
    ]
    assert d.free == 64


def test_one_that_gives_up_undrained_leaves_its_pages_in_quarantine(d: Bench) -> None:
    offered(d)
    assert ack(d, drained=False) == ["workers forget r@1", "s failed r 503 transfer_failed"]
    assert quarantined(d) == 3
    forgotten(d)
    assert quarantined(d) == 0


def test_a_lease_that_is_not_renewed_is_an_abort(d: Bench) -> None:
    offered(d)
    d.now = 120.0
    d.handle(P, Queued(transfers=("r", "unknown")))
    d.handle(Party("prefill", "other"), Queued(transfers=("r",)))
    assert d.tick(149.9) == []
    assert d.tick(150.0) == [*ABORTED, "s failed r 503 transfer_failed"]
    assert quarantined(d) == 3


def test_a_lost_link_bars_what_may_still_be_written(d: Bench) -> None:
    offered(d)
    assert d.lost(P) == [
        "workers forget r@1",
        "s failed r 503 transfer_failed",
        "p:8001 abort r@1",  # held until somebody answers there
    ]
    d.handle(P, Welcome(incarnation="their successor"))
    assert ack(d) == []
    assert quarantined(d) == 3  # a successor cannot vouch for its predecessor's writes
    d.lost(P)
    d.handle(P, Welcome(incarnation="them"))
    ack(d)
    assert quarantined(d) == 0


def test_what_was_never_sent_needs_no_quarantine(d: Bench) -> None:
    offered(d, welcome=False)
    assert d.lost(P) == ["workers forget r@1", "s failed r 503 transfer_failed"]
    assert d.free == 64


def test_nor_does_it_when_it_was_cancelled_before(d: Bench) -> None:
    offered(d, welcome=False)
    d.cancel("r")
    assert quarantined(d) == 3
    assert d.lost(P) == []
    assert d.free == 64


def test_a_cancel_before_the_welcome_is_still_acknowledged(d: Bench) -> None:
    offered(d, welcome=False)
    d.cancel("r")
    d.handle(P, Welcome(incarnation="them"))
    ack(d)
    assert d.free == 64


def test_a_pod_that_has_ended_writes_no_more(d: Bench) -> None:
    offered(d)
    d.cancel("r")
    d.submit("live", 5, max_tokens=9)
    d.plan()
    assert d.handle(SERVER, PeerGone(incarnation="other")) == []
    assert d.handle(SERVER, PeerGone(incarnation="them")) == [
        "workers forget live@2",
        "s failed live 503 transfer_failed",
    ]
    assert (d.free, quarantined(d)) == (64, 0)


def test_an_id_can_be_used_again_while_its_pages_are_barred(d: Bench) -> None:
    offered(d)
    d.cancel("r")
    d.submit("r", 47, max_tokens=9)
    assert d.plan() == ["workers expect r@2 [3,4,5]", "p:8001 offer r@2 [3,4,5]"]
    assert done(d, epoch=1) == []
    ack(d, epoch=1)
    assert quarantined(d) == 0
    assert done(d, epoch=2)[1] == "s token r 0=5"


def test_too_much_lasting_quarantine_fails_the_group(bench: MakeBench) -> None:
    d = offered(bench(role="decode", pages=11))
    d.cancel("r")
    d.tick(129.9)
    with pytest.raises(GroupError, match="3 of 11 pages are in quarantine"):
        d.tick(130.0)


def test_a_decode_group_needs_a_source(bench: MakeBench) -> None:
    d = bench(role="decode")
    message = offered(d).core.ledger.requests["r"].submit
    lines = d.handle(
        SERVER,
        type(message)(
            request_id="x", prompt_ids=(1,), seed=0, sampling=message.sampling, role_hint="decode"
        ),
    )
    assert lines == ["s failed x 400 invalid_request"]


@pytest.fixture
def warm(bench: MakeBench) -> Bench:
    """A decode group whose cache holds a handed-over prompt of 47 tokens and 3 of its output."""
    d = offered(bench(role="decode", prefix_cache=True))
    assert d.core.state(0.0).kv_cached == 0
    done(d, token=100)
    d.plan()
    for step in range(3):
        d.done(step, 101 + step)
        d.plan()
    d.cancel("r")
    d.done(3, 104)
    d.done(4, 105)
    assert (d.free, d.core.state(0.0).kv_cached) == (64, 3)
    return d


def test_only_what_follows_the_cached_prefix_is_offered(warm: Bench) -> None:
    answered = (*range(47), 100, 101, 102, 103)
    warm.submit("r", (*answered, 9, 9), max_tokens=14)
    assert warm.plan() == [
        "workers expect r@2 [3]",
        "p:8001 offer r@2 [3] from 48",
    ]
    assert warm.core.ledger.pool.available == 59  # one more page is promised
    assert done(warm, epoch=2, cached_tokens=16)[-1] == "workers admit 0/2 [0,1,2,3]"


def test_pages_are_not_found_before_they_are_in_place(bench: MakeBench) -> None:
    d = offered(bench(role="decode", prefix_cache=True))
    d.submit("s", 47, max_tokens=9)
    assert d.plan()[0] == "workers expect s@2 [3,4,5]"
    done(d)
    d.submit("t", 47, max_tokens=9)
    assert d.plan()[0] == "workers expect t@3 [6]"


def test_a_first_token_that_ends_the_request_leaves_its_prompt(bench: MakeBench) -> None:
    d = offered(bench(role="decode", prefix_cache=True))
    done(d, finish_reason="stop")
    assert (d.free, d.core.state(0.0).kv_cached) == (64, 2)


def test_a_shared_page_is_never_in_quarantine(warm: Bench) -> None:
    warm.submit("r", 47, max_tokens=9)
    warm.submit("other", 47, max_tokens=9)
    assert warm.plan()[::2] == ["workers expect r@2 [3]", "workers expect other@3 [4]"]
    warm.cancel("r")
    pool = warm.core.ledger.pool
    assert (quarantined(warm), pool.is_quarantined(3)) == (1, True)
    assert [pool.references(page) for page in (0, 1)] == [1, 1]
    warm.cancel("other")
    assert (warm.free, pool.cache.idle) == (62, 3)
    ack(warm, epoch=2)
    warm.handle(P, AbortAck(transfer="other", epoch=3))
    assert (warm.free, quarantined(warm)) == (64, 0)


def test_a_refused_offer_gives_its_prefix_back(warm: Bench) -> None:
    warm.submit("r", 47, max_tokens=9)
    warm.plan()
    warm.handle(P, Refused(transfer="r", code="x", message="no"))
    assert (warm.free, warm.core.state(0.0).kv_cached) == (64, 3)
