"""What went wrong with data parallelism elsewhere, done again here: each shows by a named fault."""

import random
from collections.abc import Sequence

import pytest
from pds_engine.errors import PdsError
from pds_engine.scheduler import planner as planner_module
from pds_engine.scheduler import steps as steps_module
from pds_engine.scheduler.dp import delayer as delayer_module
from pds_engine.scheduler.dp.delayer import Bounds, Reason, Wait
from pds_engine.scheduler.dp.passes import Passes
from pds_engine.scheduler.dp.rows import SyncRow
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.planner import Planner
from pds_simulation.agreement import peaks
from pds_simulation.events import Clock
from pds_simulation.replicas import DataParallelGroup
from simulated import Ask, SimulateRanks

CHUNK = 16
NEVER = 1e9
"""Seconds: no prompt grows old."""


def ask_all(group: DataParallelGroup, ask: Ask) -> None:
    """Chunks on one rank, decode rows on another, then a pause, and work on a third."""
    group.submit(ask("long", 6 * CHUNK, 6), 0)
    group.submit(ask("short", 5, 30), 1, at=2.5)
    group.submit(ask("next", 9, 8), 1, at=3.5)
    group.submit(ask("late", 40, 4), len(group.ranks) - 1, at=100.0)
    group.submit(ask("last", 3, 4), 0, at=200.0)


@pytest.mark.parametrize("pp", [1, 2])
def test_all_is_well_without_a_mistake(simulate_ranks: SimulateRanks, ask: Ask, pp: int):
    group = simulate_ranks(dp=3, tp=2, pp=pp)
    ask_all(group, ask)
    assert len(group.run()) == 5


# ---- shapes ----------------------------------------------------------------------------------


def test_an_idle_batch_that_takes_the_extend_path(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #25404: an idle rank is padded to a prompt's length."""
    right = planner_module.shapes
    monkeypatch.setattr(
        planner_module, "shapes", lambda counts, tp, *, extends: right(counts, tp, extends=False)
    )
    group = simulate_ranks(dp=2)
    group.submit(ask("a", 12, 4), 0)
    group.submit(ask("b", 10, 4), 1)
    with pytest.raises(PdsError, match=r"step 0 has \(12, 12\), its ranks have \(12, 10\) tokens"):
        group.run()


@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize("dp", [1, 2])
def test_tokens_that_are_not_padded(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch, dp: int, tokens: int
):
    """`padded_tokens = tokens`: the ranks of an attention group cannot share them out evenly."""
    module = steps_module if dp == 1 else planner_module
    name = "padded" if dp == 1 else "shapes"
    monkeypatch.setattr(module, name, lambda counts, tp, **_: counts)
    group = simulate_ranks(dp=dp, tp=2, chunk_size=32)
    group.submit(ask("r", tokens, 1), 0)
    with pytest.raises(
        PdsError, match=rf"step 0: {tokens} tokens, padded to {tokens}, do not share out evenly"
    ):
        group.run()


# ---- who joins a pass, and when --------------------------------------------------------------


def only_with_work(self: Passes, work: bool) -> bool:
    return not self.gathering and work


def test_a_rank_that_joins_only_with_work_of_its_own(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Passes, "enters", only_with_work)
    group = simulate_ranks(dp=3)
    ask_all(group, ask)
    with pytest.raises(PdsError, match=r"dp rank \d waits in pass \d"):
        group.run()


def test_a_full_pipeline_as_the_condition_to_join(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """LLMServingSim #65: any rank opens a pass, one with a pipeline that is not full joins none;
    with pp above 1, a rank that runs dry is never full again."""
    right = Planner._enter

    def enter(self: Planner, now: float) -> None:
        stages = self._ledger.settings.parallelism.pp
        opens = self.passes.parked and self.passes._woken < self.passes.next_id
        if opens or len(self.steps.in_flight) >= stages - 1:
            right(self, now)

    monkeypatch.setattr(Planner, "_enter", enter)
    shallow = simulate_ranks(dp=3, pp=1)
    ask_all(shallow, ask)
    shallow.run()  # one stage is always full
    group = simulate_ranks(dp=3, pp=2)
    ask_all(group, ask)
    with pytest.raises(PdsError, match=r"dp rank \d waits in pass"):
        group.run()


def test_a_sync_at_zero_load_that_wedges(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #34582, #36802: a rank enters the first pass with work, and nobody wakes the idle."""
    monkeypatch.setattr(Passes, "wake", lambda self, pass_id: None)
    group = simulate_ranks(dp=2)
    group.submit(ask("r", 5, 2), 0)
    with pytest.raises(PdsError, match="dp rank 0 waits in pass 0"):
        group.run()


def test_ranks_that_gather_when_nobody_has_work(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """They never rest, and burn a core each."""
    right = Passes.gathered

    def gathered(self: Passes, rows: Sequence[SyncRow]) -> None:
        right(self, rows)
        self.parked = False

    monkeypatch.setattr(Passes, "gathered", gathered)
    group = simulate_ranks(dp=2)
    group.submit(ask("r", 5, 2), 0)
    with pytest.raises(PdsError, match="does not end"):
        group.events.run(most=10_000)


def test_an_idle_batch_where_nobody_has_work(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #36802: a forward of idle batches alone."""
    monkeypatch.setattr(planner_module, "needs_idle_batch", lambda dp, gathered: dp > 1)
    group = simulate_ranks(dp=2, enabled=False)
    group.submit(ask("r", 5, 2), 0)
    with pytest.raises(PdsError, match="dp rank 0 issued 3 steps, 2 were agreed on"):
        group.run()


def test_a_wake_that_is_lost_when_it_comes_before_the_last_rows(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """One rank has the rows of an empty pass, parks and gets work; the other has not seen them."""

    def run() -> None:
        delays = iter([1.0, 0.0, 0.0] + [0.0, 3.0] * 4 + [1.0] * 50)
        group = simulate_ranks(dp=2, sync=lambda: next(delays), enabled=False)
        group.submit(ask("r", 5, 1), 0)
        for moment in range(20):
            group.submit(ask(f"r{moment}", 5, 1), 0, at=1.25 + moment / 2)
        group.run()

    run()
    right = Passes.wake

    def wake(self: Passes, pass_id: int) -> None:
        if not self.gathering:
            right(self, pass_id)

    monkeypatch.setattr(Passes, "wake", wake)
    with pytest.raises(PdsError, match=r"dp rank 0 waits in pass \d"):
        run()


# ---- the delayer -----------------------------------------------------------------------------


def patient(passes: int) -> object:
    """The rule, but no line ends a wait before so many passes."""
    right = delayer_module.judge

    def judge(rows: Sequence[SyncRow], wait: Wait, bounds: Bounds) -> Reason:
        reason = right(rows, wait, bounds)
        waits = reason not in ("nothing", "idle", "fused") and wait.waited < passes
        return "fill" if waits else reason

    return judge


def queue_beside_long_answers(group: DataParallelGroup, ask: Ask) -> None:
    """On both ranks: three long answers, and a slot for which the others queue."""
    for number in range(16):
        group.submit(ask(f"r{number}", 5, 60 if number < 6 else 6), number % 2)


def test_waits_without_a_bound(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #29898: 97% vetoes."""

    def run() -> None:
        group = simulate_ranks(dp=2, max_running=4, max_ticks=8, max_seconds=NEVER)
        queue_beside_long_answers(group, ask)
        group.run()

    run()
    monkeypatch.setattr(delayer_module, "judge", patient(40))
    with pytest.raises(PdsError, match=r"prompts wait for 9 passes, not 8"):
        run()


def test_ranks_that_decide_by_their_own_clocks(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #30521, #32454: one says that the wait has been long enough, another does not."""

    def run() -> None:
        clocks = [Clock(), Clock(drift=0.5)]
        group = simulate_ranks(dp=2, max_running=4, max_seconds=NEVER, clocks=clocks)
        queue_beside_long_answers(group, ask)
        group.run()

    monkeypatch.setattr(delayer_module, "judge", patient(8))  # waits are long enough to differ
    run()
    right = Planner._judged

    def judged(self: Planner, rows: Sequence[SyncRow], now: float) -> bool:
        return right(self, rows, now) or self.delays.held(now) > 2.5

    monkeypatch.setattr(Planner, "_judged", judged)
    with pytest.raises(PdsError, match=r"ranks of a stage compute different steps|issued other"):
        run()


def sglang(rows: Sequence[SyncRow], wait: Wait, bounds: Bounds) -> Reason:
    """Its table: prompts run where all ranks have some, or after a while (sglang #16363)."""
    if not any(row.prompt_tokens for row in rows):
        return "nothing"
    if all(row.prompt_tokens for row in rows) or wait.waited >= bounds.max_ticks - 1:
        return "timeout"
    return "fill"


def passes_of_long_prompts(simulate_ranks: SimulateRanks, ask: Ask) -> int:
    """Four ranks with a prompt of 8 to 11 chunks each, at unlike times, beside decode rows: passes
    until all are computed."""
    rng = random.Random(5)
    group = simulate_ranks(dp=4, max_seconds=NEVER)
    for rank in range(4):
        group.submit(ask(f"decodes {rank}", 3, 150), rank)
        group.submit(ask(f"long {rank}", (8 + rank) * CHUNK, 2), rank, at=2 + rng.uniform(0, 8))
    answers = {each.request.request_id: each for each in group.run()}
    first = max(answers[f"long {rank}"].times[0] for rank in range(4))
    return sum(first >= when for when in answers["decodes 0"].times)


def test_chunks_that_are_never_in_step(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #35241: a rank a chunk behind makes all later chunks wait for the timeout."""
    ours = passes_of_long_prompts(simulate_ranks, ask)
    assert ours <= 2 + 8 + 8 + 11  # until they come, and the chunks of any two one after another
    monkeypatch.setattr(delayer_module, "judge", sglang)
    with pytest.raises(PdsError, match="prompts half done wait"):
        passes_of_long_prompts(simulate_ranks, ask)
    # Had its bound been no tighter for them, nothing but the time would show it.
    monkeypatch.setattr(DataParallelGroup, "disagreements", lambda self: [])
    assert passes_of_long_prompts(simulate_ranks, ask) >= 3 * ours


def test_running_requests_pinned_one_below_the_maximum(
    simulate_ranks: SimulateRanks, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """sglang #30294, on every rank. random schedules ask it of all settings (dp_schedules)."""

    def run() -> list[int]:
        group = simulate_ranks(dp=4, max_running=4)
        for number in range(24):
            group.submit(ask(f"r{number}", 5, 60), number % 4)
        group.run()
        return peaks(group.settings, group.bus.passes)

    assert run() == [4] * 4
    right = Ledger.admissible
    monkeypatch.setattr(
        Ledger, "admissible", lambda self: right(self) if self.running < 3 else None
    )
    assert run() == [3] * 4
