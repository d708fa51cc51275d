"""What went wrong elsewhere, done again here: each shows, in the answers or in what is left."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
from msgspec.structs import replace
from pds_engine.errors import PdsError, ProtocolError
from pds_engine.messages import StepDone, StepPlan
from pds_engine.parallel import stage as stages_module
from pds_engine.parallel.stage import Following, Stage, StagePlace
from pds_engine.scheduler import steps as scheduler_steps
from pds_simulation.events import Signal
from pds_simulation.exchange import Hidden, SimulatedExchange
from pds_simulation.group import Group, MakeStage
from pds_simulation.worker import SimulatedWorker, Stepper
from simulated import Ask, Simulate

CHUNK = 16
Belief = Callable[[StepPlan, SimulatedWorker], StepPlan]


def believing(belief: Belief, stage: int) -> MakeStage:
    """A group whose stage `stage` takes each plan to be another one."""

    class MistakenStage(Stage[Hidden, Signal[Any]]):
        def __init__(
            self, place: StagePlace, worker: SimulatedWorker, exchange: SimulatedExchange
        ) -> None:
            super().__init__(place, worker, exchange)
            self._worker = worker

        def step(
            self, plan: StepPlan, following: Following
        ) -> Generator[Signal[Any], Any, StepDone | None]:
            wrong = self._place.stage == stage
            return super().step(belief(plan, self._worker) if wrong else plan, following)

    return MistakenStage


def ask_all(group: Group, ask: Ask) -> None:
    """Chunks, decodes, a prompt that is overtaken, and one that is given up."""
    group.submit(ask("r0", 6 * CHUNK, 6, priority=5))
    group.submit(ask("r1", 20, 8), at=2.5)
    group.submit(ask("r2", 5, 8), at=3.5)
    group.submit(ask("r3", 9, 40), at=4.5)
    group.cancel("r3", at=12.5)


def no_last_chunk(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    """By this rank's own state: does any slot that it knows still have prompt left? A parked one
    says yes, although it is not in the batch (sglang #26148)."""
    ends = {row.slot: row.start + row.length for row in plan.rows}
    unfinished = any(
        ends.get(index, 0) < len(slot.known) for index, slot in worker.runner.slots.items()
    )
    return replace(plan, expects_output=plan.expects_output and not unfinished)


def sends_nothing(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    return replace(plan, expects_output=False)


def always_receives(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    return replace(plan, expects_output=True)


def while_the_request_lives(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    """Receives nothing for a step of which no request is in a slot any more."""
    live = any(row.samples and row.slot == 0 for row in plan.rows)
    return replace(plan, expects_output=plan.expects_output and live)


def reads_too_early(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    return replace(plan, depends_on=-1)


def swaps_rows(plan: StepPlan, worker: SimulatedWorker) -> StepPlan:
    return replace(plan, rows=plan.rows[::-1])


BELIEFS: dict[str, tuple[Belief, int]] = {
    "the receiver looks at a parked chunk": (no_last_chunk, 0),
    "a receive is ported without its send (vllm-omni #7393)": (sends_nothing, 1),
    "a send without its receive": (sends_nothing, 0),
    "the empty path still receives (vLLM #40749, #41612)": (always_receives, 0),
    "an output is received only while its request lives": (while_the_request_lives, 0),
    "a token is read before it has come": (reads_too_early, 0),
    "rows come in another order": (swaps_rows, 1),
}


@pytest.mark.parametrize("rendezvous", [True, False])
@pytest.mark.parametrize("mistake", BELIEFS)
def test_a_stage_that_does_not_go_by_the_plan(
    simulate: Simulate, ask: Ask, mistake: str, rendezvous: bool
):
    group = simulate(pp=2, rendezvous=rendezvous, make_stage=believing(*BELIEFS[mistake]))
    ask_all(group, ask)
    with pytest.raises(PdsError):
        group.run()


def test_the_same_stage_that_goes_by_the_plan(simulate: Simulate, ask: Ask):
    """It is the beliefs that fail above."""
    group = simulate(pp=2, make_stage=believing(lambda plan, worker: plan, 0))
    ask_all(group, ask)
    assert len(group.run()) == 4


def test_a_buffer_filled_during_a_send(
    simulate: Simulate, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """vLLM #52015: a stage that takes its buffers for free sooner than they are."""
    monkeypatch.setattr(stages_module, "BUFFERS", 3)
    group = simulate(pp=4, step_time=lambda stage, tokens, context: 9.0 if stage == 1 else 1.0)
    ask_all(group, ask)
    with pytest.raises(PdsError):
        group.run()


def test_a_skip_that_never_fires(simulate: Simulate, ask: Ask, monkeypatch: pytest.MonkeyPatch):
    """vllm-ascend #9843: every answer is right, and only counting shows it."""
    monkeypatch.setattr(scheduler_steps, "expects_output", lambda *_: True)
    group = simulate(pp=2)
    group.submit(ask("r", 4 * CHUNK, 2))
    group.submit(ask("next", 4 * CHUNK, 2), at=30)
    group.run()
    # test_messages.py wants 1 each. Of the second prompt all but a page is in the prefix cache.
    assert len(group.outputs[0].sent) == 5 + 2
    # Each first token's is read. What was sent last is taken by no step any more.
    assert unneeded(group) == [7 - 2 - 1]


def test_a_plan_that_depends_on_too_little(
    simulate: Simulate, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """Every stage obeys it, and would decode from an older token."""
    monkeypatch.setattr(scheduler_steps, "depends_on", lambda *_: -1)
    group = simulate(pp=2)
    group.submit(ask("r", 20, 8))
    with pytest.raises(
        ProtocolError,
        match=r"^step 2, which depends on step -1, reads the token of slot 0 at position 20, and "
        r"the first stage does not know it: its last one is that of position 19, as the output of "
        r"step 1 has not been received$",
    ):
        group.run()


def test_a_plan_that_depends_on_too_little_for_a_later_token(
    simulate: Simulate, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """The slot holds a token by then: a stale one."""
    right = scheduler_steps.depends_on
    monkeypatch.setattr(
        scheduler_steps,
        "depends_on",
        lambda picked, step, settings: -1 if step == 5 else right(picked, step, settings),
    )
    group = simulate(pp=2)
    group.submit(ask("r", 20, 8))
    with pytest.raises(
        ProtocolError, match=r"^step 5, which depends on step -1, .* output of step 4 has not been"
    ):
        group.run()


def test_an_output_that_the_first_stage_does_not_take(simulate: Simulate, ask: Ask):
    """It was sent and has come, and a later step reads the token before it."""

    class Forgetful(Stage[Hidden, Signal[Any]]):
        def _take_outputs(self, until: int) -> Generator[Signal[Any], Any, None]:
            if self._expected and self._expected[0][0].step_id == 3:
                yield self._expected.popleft()[1]
            yield from super()._take_outputs(until)

    group = simulate(pp=2, make_stage=Forgetful)
    group.submit(ask("r", 20, 8))
    with pytest.raises(ProtocolError, match=r"^step 4, .* as the output of step 3 has not been"):
        group.run()


def test_a_decode_row_that_is_planned_twice(
    simulate: Simulate, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    """On one stage there is nothing to receive, and the same guard: a token of another position."""

    class Repeating(Stage[Hidden, Signal[Any]]):
        def step(
            self, plan: StepPlan, following: Following
        ) -> Generator[Signal[Any], Any, StepDone | None]:
            if plan.step_id == 3:
                (row,) = plan.rows
                plan = replace(plan, rows=(replace(row, start=row.start - 1),))
            return super().step(plan, following)

    group = simulate(pp=1, make_stage=Repeating)
    group.submit(ask("r", 20, 8))
    with pytest.raises(ProtocolError, match=r"^step 3, .* its last one is that of position 21$"):
        group.run()


def unneeded(group: Group) -> list[int]:
    """Of the first stage's ranks: outputs that came and that no step has read."""
    return [each.runner.reads.unneeded for each in group.workers if each.place.first]


def test_a_token_that_marks_nothing(simulate: Simulate, ask: Ask):
    """What a skipped or empty output holds must never be a slot's last token."""

    def swallow(place: StagePlace, worker: SimulatedWorker, exchange: SimulatedExchange) -> Stepper:
        if place.last:
            send = exchange.send_output
            exchange.send_output = lambda plan, tokens: send(plan, ())  # type: ignore[method-assign]
        return Stage[Hidden, Signal[Any]](place, worker, exchange)

    group = simulate(pp=2, make_stage=swallow)
    group.submit(ask("r", 4, 3))
    with pytest.raises(PdsError, match=r"the first stage got \(-1,\)"):
        group.run()
