"""What went wrong elsewhere, done again here: each shows, in the answers or in what is left."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
from msgspec.structs import replace
from pds_engine.errors import PdsError
from pds_engine.messages import StepDone, StepPlan
from pds_engine.parallel import stage as stages_module
from pds_engine.parallel.stage import Following, Place, Stage
from pds_engine.scheduler import steps as scheduler_steps
from pds_engine.simulation.exchange import Hidden, SimulatedExchange
from pds_engine.simulation.group import Group, MakeStage
from pds_engine.simulation.worker import Stepper, Worker

CHUNK = 16
Belief = Callable[[StepPlan, Worker], StepPlan]


def believing(belief: Belief, stage: int) -> MakeStage:
    """A group whose stage `stage` takes each plan to be another one."""

    class Believer(Stage[Any, Any]):
        def __init__(self, place: Place, worker: Worker, exchange: SimulatedExchange) -> None:
            super().__init__(place, worker, exchange)
            self._worker = worker

        def step(
            self, plan: StepPlan, following: Following
        ) -> Generator[Any, Any, StepDone | None]:
            wrong = self._place.stage == stage
            return super().step(belief(plan, self._worker) if wrong else plan, following)

    return Believer


def ask_all(group: Group, ask: Any) -> None:
    """Chunks, decodes, a prompt that is overtaken, and one that is given up."""
    group.submit(ask("r0", 6 * CHUNK, 6, priority=5))
    group.submit(ask("r1", 20, 8), at=2.5)
    group.submit(ask("r2", 5, 8), at=3.5)
    group.submit(ask("r3", 9, 40), at=4.5)
    group.cancel("r3", at=12.5)


def no_last_chunk(plan: StepPlan, worker: Worker) -> StepPlan:
    """By this rank's own state: does any slot that it knows still have prompt left? A parked one
    says yes, although it is not in the batch (sglang #26148)."""
    ends = {row.slot: row.start + row.length for row in plan.rows}
    unfinished = any(
        ends.get(index, 0) < len(slot.known) for index, slot in worker.runner.slots.items()
    )
    return replace(plan, expects_output=plan.expects_output and not unfinished)


def sends_nothing(plan: StepPlan, worker: Worker) -> StepPlan:
    return replace(plan, expects_output=False)


def always_receives(plan: StepPlan, worker: Worker) -> StepPlan:
    return replace(plan, expects_output=True)


def while_the_request_lives(plan: StepPlan, worker: Worker) -> StepPlan:
    """Receives nothing for a step of which no request is in a slot any more."""
    live = any(row.samples and row.slot == 0 for row in plan.rows)
    return replace(plan, expects_output=plan.expects_output and live)


def reads_too_early(plan: StepPlan, worker: Worker) -> StepPlan:
    return replace(plan, depends_on=-1)


def swaps_rows(plan: StepPlan, worker: Worker) -> StepPlan:
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
    simulate: Any, ask: Any, mistake: str, rendezvous: bool
):
    group = simulate(pp=2, rendezvous=rendezvous, make_stage=believing(*BELIEFS[mistake]))
    ask_all(group, ask)
    with pytest.raises(PdsError):
        group.run()


def test_the_same_stage_that_goes_by_the_plan(simulate: Any, ask: Any):
    """It is the beliefs that fail above."""
    group = simulate(pp=2, make_stage=believing(lambda plan, worker: plan, 0))
    ask_all(group, ask)
    assert len(group.run()) == 4


def test_a_buffer_filled_during_a_send(simulate: Any, ask: Any, monkeypatch: pytest.MonkeyPatch):
    """vLLM #52015: a stage that takes its buffers for free sooner than they are."""
    monkeypatch.setattr(stages_module, "BUFFERS", 3)
    group = simulate(pp=4, step_time=lambda stage, tokens, context: 9.0 if stage == 1 else 1.0)
    ask_all(group, ask)
    with pytest.raises(PdsError):
        group.run()


def test_a_skip_that_never_fires(simulate: Any, ask: Any, monkeypatch: pytest.MonkeyPatch):
    """vllm-ascend #9843: every answer is right, and only counting shows it."""
    monkeypatch.setattr(scheduler_steps, "expects_output", lambda *_: True)
    group = simulate(pp=2)
    group.submit(ask("r", 4 * CHUNK, 2))
    group.run()
    assert len(group.outputs[0].sent) == 5  # test_messages.py wants 1


def test_a_token_that_marks_nothing(simulate: Any, ask: Any):
    """What a skipped or empty output holds must never be a slot's last token."""

    def swallow(place: Place, worker: Worker, exchange: SimulatedExchange) -> Stepper:
        if place.last:
            send = exchange.send_output
            exchange.send_output = lambda plan, tokens: send(plan, ())  # type: ignore[method-assign]
        return Stage[Hidden, Any](place, worker, exchange)

    group = simulate(pp=2, make_stage=swallow)
    group.submit(ask("r", 4, 3))
    with pytest.raises(PdsError, match=r"the first stage got \(-1,\)"):
        group.run()
