"""Mistakes in preemption: in random groups each of them loses something, or hangs."""

import random
from collections.abc import Callable, Sequence

import pytest
from pds_engine.errors import PdsError
from pds_engine.messages import StepDone
from pds_engine.scheduler import preemption
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.preemption import Forecast
from pds_engine.scheduler.request import Phase, Request
from pds_engine.scheduler.steps import Steps
from scheduling.groups import random_groups

SHORT_OF_PAGES = {
    "prompt": 12,
    "output": 24,
    "max_running": 6,
    "max_step_tokens": 14,
    "max_waiting": 8,
    "pages": 9,
}


def pages_return_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A victim's last step is still in flight when its pages are given away."""
    retire = Ledger._retire

    def hasty(ledger: Ledger, request: Request, phase: Phase) -> None:
        retire(ledger, request, phase)
        if phase is Phase.PREEMPTED and request.pages:
            ledger.pool.release(request.pages)
            request.pages = []

    monkeypatch.setattr(Ledger, "_retire", hasty)


def tokens_on_their_way_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A victim is requeued before its steps in flight are done, without their tokens."""

    def hasty(ledger: Ledger, request: Request) -> None:
        ledger._retire(request, Phase.PREEMPTED)
        ledger._lingering[request.last_step].remove(request)
        known, request.last_step = request.last_step, -1
        ledger._reclaim(request)
        request.last_step = known

    monkeypatch.setattr(Ledger, "preempt", hasty)


def the_step_is_done_before_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited for the step returns before the step's own tokens are taken in."""
    finish = Steps.finish

    def hasty(steps: Steps, message: StepDone, now: float) -> Sequence[Request]:
        samplers = finish(steps, message, now)
        steps.ledger.step_done(message.step_id)
        return samplers

    monkeypatch.setattr(Steps, "finish", hasty)


def the_first_in_order_is_the_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(ledger: Ledger, forecast: Forecast) -> Request | None:
        running = [r for r in (*ledger.decoding, *ledger.prefilling) if r not in forecast.victims]
        return min(running, key=lambda request: request.rank) if len(running) > 1 else None

    monkeypatch.setattr(preemption, "last_running", first)


def nobody_is_the_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "last_running", lambda ledger, forecast: None)


def run_many(events: int, *, pair: bool, **shape: float) -> None:
    """Forty random groups, on one to four stages, with mishaps."""
    for seed in range(40):
        rng, pp = random.Random(seed), 1 + seed % 4
        more = {"fenced": True, "mishaps": 1.0, **shape}
        groups = random_groups(rng, pair=pair, pp=pp, tp=1, **more)
        groups.run(events=events)
        groups.end()


@pytest.mark.parametrize(
    "broken",
    [
        pages_return_at_once,
        tokens_on_their_way_are_dropped,
        the_step_is_done_before_its_tokens,
        the_first_in_order_is_the_victim,
        nobody_is_the_victim,
    ],
)
def test_a_broken_rule_is_noticed(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Among a few dozen runs at least one shows it."""
    broken(monkeypatch)
    with pytest.raises((AssertionError, LookupError, PdsError)):
        run_many(500, pair=False, **SHORT_OF_PAGES)


@pytest.mark.parametrize(
    "broken",
    [
        pages_return_at_once,
        tokens_on_their_way_are_dropped,
        the_first_in_order_is_the_victim,
        nobody_is_the_victim,
    ],
)
def test_a_broken_rule_is_noticed_on_a_decode_group(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A step that is done before its tokens counts for less here: they would be computed again."""
    broken(monkeypatch)
    shape = {**SHORT_OF_PAGES, "prompt": 3, "output": 33, "resumable": 0.8}
    with pytest.raises((AssertionError, LookupError, PdsError)):
        run_many(1000, pair=True, **shape)
