"""dp rank 0 of a prefill group keeps offers until they are bound, and passes on what is said."""

from typing import Any

import pytest
from pds_engine.messages import (
    Abort,
    AbortAck,
    Bound,
    Cancel,
    Claimed,
    Message,
    Offered,
    Queued,
    Refused,
    Relay,
    RelayLost,
    TransferDone,
    TransferOffer,
    Withdrawn,
)
from pds_engine.scheduler.party import REPLICAS, SERVERS, Out, Party
from scheduling.bench import Bench, MakeBench

D = Party("decode", "d0")
SERVER = Party("server", "s")
LEASE = 30.0


class Front:
    """dp rank 0 of a prefill group of two; the test is everybody else."""

    def __init__(self, bench: Bench) -> None:
        self.core, self.now = bench.core, 100.0

    def told(self, sender: Party, message: Message) -> list[Out]:
        return self.core.handle(sender, message, self.now)

    def offer(self, name: str = "r") -> list[Out]:
        return self.told(D, offer(name))

    def after(self, seconds: float) -> list[Out]:
        self.now += seconds
        return self.core.tick(self.now)


def offer(name: str = "r") -> TransferOffer:
    return TransferOffer(
        transfer=name, epoch=1, prompt_digest=b"", start_token=0, pages=(1,), incarnation="i",
        kv_fingerprint="f", ranks=(),
    )  # fmt: skip


@pytest.fixture
def front(bench: MakeBench) -> Front:
    return Front(bench(role="prefill", dp=2, lease_seconds=LEASE))


def relayed(message: TransferOffer | Abort) -> Out:
    return Out(Party("replicas", "1"), Relay(peer="d0", message=message))


def test_an_offer_is_kept_and_announced_and_goes_with_its_request(front: Front):
    assert front.offer() == [Out(SERVERS, Offered(request_id="r"))]
    assert front.told(SERVER, Claimed(request_id="r")) == []
    assert front.told(SERVER, Bound(request_id="r", dp_rank=1)) == [relayed(offer())]
    abort = Abort(transfer="r", epoch=1, incarnation="i")
    assert front.told(D, abort) == [relayed(abort)]


def test_one_whose_request_waits_is_kept_however_long(front: Front):
    front.offer("claimed")
    front.offer("forgotten")
    front.told(SERVER, Claimed(request_id="claimed"))
    assert front.after(2 * LEASE)[:2] == [
        Out(SERVERS, Withdrawn(request_id="forgotten")),
        Out(D, refusal("forgotten")),
    ]
    assert front.after(LEASE) == [Out(D, Queued(transfers=("claimed",)))]


def refusal(name: str) -> Refused:
    text = "the request of this offer has not come"
    return Refused(transfer=name, code="unavailable", message=text)


def test_the_decode_side_gives_up_before_it_is_bound(front: Front):
    front.offer()
    assert front.told(D, Abort(transfer="r", epoch=1, incarnation="i")) == [
        Out(SERVERS, Withdrawn(request_id="r")),
        Out(D, given_up("the decode side gave the request up", "transfer_failed")),
    ]


def given_up(message: str, code: str) -> AbortAck:
    return AbortAck(transfer="r", epoch=1, code=code, message=message)


def test_its_request_ends_before_it_is_bound(front: Front):
    front.offer()
    front.told(SERVER, Claimed(request_id="r"))
    assert front.told(SERVER, Cancel(request_id="r")) == [
        Out(SERVERS, Withdrawn(request_id="r")),
        Out(D, given_up("the prefill side gave the request up", "cancelled")),
    ]


def test_an_offer_that_comes_after_its_request_was_bound(front: Front):
    """As at a drain, when all requests are bound at once."""
    assert front.told(SERVER, Bound(request_id="r", dp_rank=1)) == []
    assert front.offer() == [relayed(offer())]


DONE = TransferDone(
    transfer="r", epoch=1, token=7, logprobs=None, cached_tokens=0, finish_reason=None
)


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        (Queued(transfers=("r",)), False),
        (DONE, True),
        (Refused(transfer="r", code="c", message="m"), True),
        (AbortAck(transfer="r", epoch=1), True),
        (AbortAck(transfer="r", epoch=1, drained=False), False),  # it alone knows of its writes
    ],
)
def test_answers_are_passed_on_and_the_last_one_ends_it(front: Front, answer: Any, final: bool):
    front.offer()
    front.told(SERVER, Bound(request_id="r", dp_rank=1))
    assert front.told(REPLICAS, Relay(peer="d0", message=answer)) == [Out(D, answer)]
    abort = Abort(transfer="r", epoch=1, incarnation="i")
    ours = Out(D, AbortAck(transfer="r", epoch=1))
    assert front.told(D, abort) == [ours if final else relayed(abort)]


def test_all_ranks_are_told_of_a_decode_side_that_is_lost(front: Front):
    front.offer()
    assert front.core.lost(D, front.now) == [
        Out(SERVERS, Withdrawn(request_id="r")),
        Out(D, given_up("the decode side is lost", "transfer_failed")),
        Out(REPLICAS, RelayLost(peer="d0")),
    ]


def test_a_request_whose_groups_do_not_fit_ends_at_once(front: Front):
    """No dp rank has it: the server is told, in whose queue it waits for another offer."""
    front.core.decode.kv_fingerprint = "another"
    refused, failed = front.offer()
    assert (refused.to, refused.message.code) == (D, "transfer_failed")
    assert (failed.to, failed.message.request_id) == (SERVERS, "r")
    assert "KV formats differ" in failed.message.message
