"""Steps above dp 1: proposed, gathered, committed. bench.py says how to read the lines."""

from collections.abc import Sequence
from typing import Any

import pytest
from pds_engine.errors import StageTimeout
from pds_engine.messages import Gather, Gathered, StepPlan, Wake
from pds_engine.scheduler.dp import delayer
from pds_engine.scheduler.dp.rows import SyncRow
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import REPLICAS, SYNC, Out
from pds_engine.scheduler.pick import Picked
from pds_engine.scheduler.steps import Steps
from pds_simulation import dp_schedules, schedules
from scheduling.bench import Bench, MakeBench, show

IDLE = SyncRow(0)


class Ranked:
    """dp rank 0 of two on the bench; the test is the other one."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.core = bench.core
        self.row = SyncRow(-1)
        """What it gave last."""
        self.plans: list[StepPlan] = []

    def plan(self) -> list[str]:
        return self._shown(self.core.plan(self.bench.now))

    def gathered(self, other: SyncRow = IDLE) -> list[str]:
        """The other's row has come too, of the same pass."""
        rows = (*self.row, *other._replace(pass_id=self.row.pass_id))
        message = Gathered(rows=rows)
        return self._shown(self.core.handle(SYNC, message, self.bench.now))

    def wake(self, pass_id: int) -> list[str]:
        return show(self.core.handle(REPLICAS, Wake(pass_id=pass_id), self.bench.now))

    def done(self) -> list[str]:
        """The oldest step is done; every token is 7."""
        oldest = self.core.steps.in_flight[0]
        return self.bench.done(oldest.plan.step_id, *(7,) * len(oldest.samplers))

    def _shown(self, out: Sequence[Out]) -> list[str]:
        for item in out:
            if isinstance(item.message, Gather):
                self.row = SyncRow(*item.message.row)
            elif isinstance(item.message, StepPlan):
                self.plans.append(item.message)
        return show(out)


@pytest.fixture
def ranked(bench: MakeBench) -> Any:
    def make(ranks: tuple[int, ...] = (64,), **bounds: Any) -> Ranked:
        return Ranked(bench(ranks=ranks, dp=2, **{"enabled": False, **bounds}))

    return make


def snapshot(ledger: Ledger) -> list[object]:
    """All that a step that was not issued must leave as it is."""
    pool = ledger.pool
    return [
        (pool.used, pool.available, pool.promised, pool.cache.idle, ledger.running),
        (ledger.preemptions, ledger.done, ledger.decodes, len(ledger.out)),
        [r.id for r in ledger.decoding],
        [r.id for r in ledger.prefilling],
        sorted(r.id for r in ledger.queue),
        [
            (
                r.id,
                r.phase,
                r.computed,
                r.planned,
                r.dropped,
                tuple(r.pages),
                r.promised,
                r.last_step,
            )
            for r in ledger.requests.values()
        ],
    ]


# ---- a proposal changes nothing ----------------------------------------------------------------


def test_a_proposal_with_victims_is_only_a_proposal(bench: MakeBench):
    b = bench(pages=4, page_size=16, async_scheduling=False)
    b.submit("first", 16, 20)
    b.submit("last", 16, 20)
    ledger, steps = b.core.ledger, b.core.steps
    b.plan()
    while True:
        oldest = steps.in_flight[0]
        b.done(oldest.plan.step_id, *(7 for _ in oldest.samplers))
        before = snapshot(ledger)
        picked = steps.pick()
        assert picked == steps.pick()
        assert snapshot(ledger) == before
        if picked.victims:
            break
        b.plan()
    assert [request.id for request in picked.victims] == ["last"]
    assert ledger.preemptions == 0
    assert "release" in " ".join(b.plan())
    assert ledger.preemptions == 1


@pytest.mark.parametrize("module", [schedules, dp_schedules])
def test_no_proposal_of_random_schedules_changes_anything(
    monkeypatch: pytest.MonkeyPatch, module: Any
):
    """Each is made twice, with and without prompts, and compared."""
    right, victims = Steps.pick, 0

    def twice(self: Steps, *, prompts: bool = True) -> Picked | None:
        nonlocal victims
        before = snapshot(self.ledger)
        right(self, prompts=not prompts)
        first, again = right(self, prompts=prompts), right(self, prompts=prompts)
        assert first == again
        assert snapshot(self.ledger) == before
        victims += len(first.victims) if first else 0
        return first

    monkeypatch.setattr(Steps, "pick", twice)
    assert module.explore(0, 60) == []
    assert victims > 3


# ---- a pass ------------------------------------------------------------------------------------


def test_a_request_is_computed_in_the_next_pass(ranked: Any):
    rank = ranked()
    rank.bench.submit("a", 20, max_tokens=3)
    assert rank.plan() == ["workers admit 0/1 [0,1]", "replicas wake 0", "sync gather 0: 0|20"]
    assert rank.plan() == []
    assert rank.gathered() == ["workers step 0: 0:0+20* <- -1"]
    assert rank.plans[-1].dp_tokens == (20, 0)
    assert rank.plan() == ["sync gather 1: 1|0"]
    assert rank.gathered() == ["workers step 1: 0:20+1* <- 0"]
    assert rank.plans[-1].dp_tokens == (1, 0)
    assert rank.plan() == []  # two steps are in flight
    assert rank.done() == ["s token a 0=7"]
    assert rank.plan() == ["sync gather 2: 1|0"]


def test_an_idle_rank_runs_an_idle_batch_and_parks_with_the_others(ranked: Any):
    rank = ranked(ranks=(64, 64), tp=2)
    assert rank.plan() == []
    assert rank.wake(0) == []
    assert rank.plan() == ["sync gather 0: 0|0"]
    prompt = SyncRow(0, prompt_tokens=17, pending_tokens=17)
    assert rank.gathered(prompt) == ["workers step 0:  <- -1"]
    plan = rank.plans[-1]
    assert (plan.rows, plan.padded_tokens, plan.dp_tokens) == ((), 0, (0, 18))
    assert rank.plan() == ["sync gather 1: 0|0"]
    assert rank.gathered(SyncRow(0, decode_tokens=1, running=1)) == ["workers step 1:  <- -1"]
    assert rank.plans[-1].dp_tokens == (0, 2)
    rank.done()
    rank.done()
    assert rank.plan() == ["sync gather 2: 0|0"]
    assert rank.gathered() == []
    assert rank.plan() == []
    assert rank.wake(2) == []
    assert rank.wake(2) == []
    assert rank.plan() == []
    assert rank.wake(3) == []
    assert rank.plan() == ["sync gather 3: 0|0"]


def test_nobody_is_admitted_while_rows_are_gathered(ranked: Any):
    """What was proposed counts on these pages."""
    rank = ranked()
    rank.bench.submit("a", 20, max_tokens=3)
    rank.plan()
    rank.bench.submit("b", 5, max_tokens=3)
    assert rank.plan() == []
    rank.gathered()
    assert rank.plan() == ["workers admit 1/1 [2]", "sync gather 1: 1|5"]


def test_a_request_that_ends_while_rows_are_gathered(ranked: Any):
    """Its tokens become padding: all agreed on the shape."""
    rank = ranked()
    rank.bench.submit("a", 10, max_tokens=3)
    rank.bench.submit("b", 7, max_tokens=3)
    assert rank.plan()[-1] == "sync gather 0: 0|17"
    assert rank.bench.cancel("a") == ["workers release 0/1 after -1"]
    assert rank.gathered() == ["workers step 0: 1:0+7* <- -1"]
    assert (rank.plans[-1].padded_tokens, rank.plans[-1].dp_tokens) == (17, (17, 0))


def test_all_requests_end_while_rows_are_gathered(ranked: Any):
    rank = ranked()
    rank.bench.submit("a", 10, max_tokens=3)
    rank.plan()
    rank.bench.cancel("a")
    assert rank.gathered() == ["workers step 0:  <- -1"]
    assert (rank.plans[-1].rows, rank.plans[-1].dp_tokens) == ((), (10, 0))


def test_a_decode_row_that_ends_while_rows_are_gathered(ranked: Any):
    """By a stop token of a step that was in flight."""
    rank = ranked()
    rank.bench.submit("a", 10, max_tokens=9, stop_token_ids=(7,))
    rank.plan()
    rank.gathered()
    assert rank.plan() == ["sync gather 1: 1|0"]
    assert rank.done() == ["s token a 0=7 stop", "workers release 0/1 after 0"]
    assert rank.gathered() == ["workers step 1:  <- -1"]
    assert rank.plans[-1].dp_tokens == (1, 0)


@pytest.mark.parametrize("gone", ["first", "last"])
def test_a_victim_or_its_row_that_ends_while_rows_are_gathered(ranked: Any, gone: str):
    rank = ranked(ranks=(4,), async_scheduling=False)
    rank.bench.submit("first", 16, 20)
    rank.bench.submit("last", 16, 20)
    ledger, picked = rank.core.ledger, None
    while True:
        rank.plan()
        picked = rank.core.planner._proposal.whole
        if picked.victims:
            break
        rank.gathered()
        rank.done()
    assert [r.id for r in picked.victims] == ["last"]
    assert [r.id for r in picked.decodes] == ["first"]
    rank.bench.cancel(gone)
    rank.gathered()
    assert ledger.preemptions == (gone == "first")
    rows = rank.plans[-1].rows
    assert len(rows) == (gone == "last")
    assert rank.plans[-1].dp_tokens == (1, 0)


def test_refused_prompts_are_proposed_again(ranked: Any, monkeypatch: pytest.MonkeyPatch):
    reasons = iter(["idle", "rest", "drained"])
    monkeypatch.setattr(delayer, "judge", lambda rows, wait, bounds: next(reasons))
    rank = ranked(enabled=True)
    rank.bench.submit("a", 20, max_tokens=9)
    rank.plan()
    assert rank.gathered() == ["workers step 0: 0:0+20* <- -1"]
    rank.bench.submit("b", 6, max_tokens=9)
    assert rank.plan() == ["workers admit 1/1 [2]", "sync gather 1: 1|6"]
    assert rank.gathered() == ["workers step 1: 0:20+1* <- 0"]
    assert rank.plans[-1].dp_tokens == (1, 0)
    rank.done()
    assert rank.plan() == ["sync gather 2: 1|6"]
    assert rank.gathered() == ["workers step 2: 0:21+1* 1:0+6* <- 1"]
    assert rank.plans[-1].dp_tokens == (7, 0)
    assert (rank.core.planner.delays.ticks, rank.row.pending_tokens) == (1, 6)


# ---- how long -----------------------------------------------------------------------------------


def test_a_row_that_does_not_come_is_waited_for_as_long_as_a_step(ranked: Any):
    rank = ranked(step_timeout=60.0)
    rank.bench.submit("a", 20, max_tokens=3)
    rank.plan()
    assert rank.bench.tick(160.0) == []
    with pytest.raises(
        StageTimeout,
        match=r"^pass 0: another dp rank's scheduler has not given its row in 60\.5 s$",
    ):
        rank.bench.tick(160.5)


def test_a_row_is_not_late_while_a_step_is_in_flight(ranked: Any):
    """The other may be waiting for it."""
    rank = ranked(step_timeout=60.0)
    rank.bench.submit("a", 20, max_tokens=3)
    rank.plan()
    rank.gathered()
    rank.bench.tick(150.0)
    assert rank.plan() == ["sync gather 1: 1|0"]
    rank.bench.tick(155.0)
    rank.done()
    rank.bench.tick(215.0)
    with pytest.raises(StageTimeout, match=r"in 61\.0 s"):
        rank.bench.tick(216.0)
