"""Model checking: in every interleaving, with both kinds of wires, the exchanges come out even."""

from collections.abc import Callable, Container, Generator, Sequence
from itertools import islice
from typing import Any

import pytest
from msgspec.structs import replace
from pds_engine.errors import GroupError
from pds_engine.messages import StepDone, StepPlan
from pds_engine.parallel import stage as stages_module
from pds_engine.parallel.launch import DEPTH, Launched
from pds_engine.parallel.stage import Exchange, Following, Stage, StagePlace, StageRunner
from pds_simulation import explore as explore_module
from pds_simulation.events import Signal
from pds_simulation.exchange import Hidden, SimulatedExchange
from pds_simulation.explore import MakeStage, Op, Protocol, Violation, plan, script, sequences
from pds_simulation.worker import SimulatedWorker
from simulated import Ask, Simulate

CHAIN = [plan(0, True), *(plan(at, True, at - 1) for at in range(1, 8))]
"""One request decodes: each step reads the token of the one before."""
MIDDLE = [plan(at, False) for at in range(7)] + [plan(7, True)]
"""A prompt in eight chunks."""
MIXED = [plan(at, at % 3 == 0, (at - 4) // 3 * 3 if at > 3 else -1) for at in range(8)]
"""Now and then a step samples, and a later one reads it."""


def recorded(place: StagePlace, plans: list[StepPlan], late: Container[int] = ()) -> list[str]:
    return [
        f"{op.kind} {op.step}" + (f" on {op.channel}" if op.channel >= 0 else "")
        for op in script(place, plans, late=late)
    ]


def test_the_script_of_a_first_stage():
    """It takes the output that a step depends on before it computes, and posts the receive of its
    own first thing after; hidden states leave from two buffers."""
    assert recorded(StagePlace(0, 2), [plan(0, True), plan(1, False), plan(2, False, 0)]) == [
        "begin 0",
        "receive 0 on 1",
        "send 0 on 0",
        "end 0",
        "begin 1",
        "send 1 on 0",
        "end 1",
        "begin 2",
        "received 0 on 1",
        "sent 0 on 0",
        "send 2 on 0",
        "end 2",
    ]


def test_the_script_of_a_last_stage():
    """The next step's hidden states arrive while it computes, if its plan came in time."""
    assert recorded(StagePlace(1, 2), [plan(at, False) for at in range(3)], late={2}) == [
        "begin 0",
        "receive 0 on 0",
        "received 0 on 0",
        "receive 1 on 0",
        "end 0",
        "begin 1",
        "received 1 on 0",
        "end 1",
        "begin 2",
        "receive 2 on 0",
        "received 2 on 0",
        "end 2",
    ]


def test_a_stage_that_does_not_receive_ahead_posts_all_as_they_come():
    def careful(
        place: StagePlace, runner: StageRunner[int], exchange: Exchange[int, Op]
    ) -> Stage[int, Op]:
        return Stage(place, runner, exchange, ahead=False)

    plans = [plan(at, True) for at in range(4)]
    for stage in range(3):
        place = StagePlace(stage, 3)
        assert script(place, plans, careful) == script(place, plans, late=range(4))


Post = Callable[..., Signal[Any]]
"""A receive or a send of an exchange."""


class Logged(Stage[Hidden, Signal[Any]]):
    """A stage in a simulated group that writes down what it posts and what it waits for."""

    def __init__(
        self, place: StagePlace, worker: SimulatedWorker, exchange: SimulatedExchange
    ) -> None:
        super().__init__(place, worker, exchange)
        self.ops: list[tuple[str, int, int]] = []
        self.late: set[int] = set()
        self._names: dict[Signal[Any], tuple[str, int, int]] = {}
        before, after = place.stage - 1, place.stage
        for name, kind, channel in (
            ("receive_hidden", "receive", before),
            ("receive_output", "receive", place.stages - 1),
            ("send_hidden", "send", after),
            ("send_output", "send", place.stages - 1),
        ):
            setattr(exchange, name, self._logged(getattr(exchange, name), kind, channel))

    def _logged(self, post: Post, kind: str, channel: int) -> Post:
        def posted(plan: StepPlan, *content: Any) -> Signal[Any]:
            self.ops.append((kind, plan.step_id, channel))
            signal = post(plan, *content)
            awaited = {"send": "sent", "receive": "received"}[kind]
            self._names[signal] = awaited, plan.step_id, channel
            return signal

        return posted

    def step(
        self, plan: StepPlan, following: Following
    ) -> Generator[Signal[Any], Any, StepDone | None]:
        def asked() -> StepPlan | None:
            after = following()
            if after is None:
                self.late.add(plan.step_id + 1)
            return after

        self.ops.append(("begin", plan.step_id, -1))
        step, answer = super().step(plan, asked), None
        while True:
            try:
                signal = step.send(answer)
            except StopIteration as stop:
                self.ops.append(("end", plan.step_id, -1))
                done: StepDone | None = stop.value
                return done
            self.ops.append(self._names[signal])
            answer = yield signal


@pytest.mark.parametrize("skip_output", [True, False])
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_a_stage_does_in_a_group_what_its_script_says(
    simulate: Simulate, ask: Ask, pp: int, skip_output: bool
):
    """What is explored is what happens: with true plans, tokens and times."""
    stages: list[Logged] = []

    def make(place: StagePlace, worker: SimulatedWorker, exchange: SimulatedExchange) -> Logged:
        stages.append(Logged(place, worker, exchange))
        return stages[-1]

    group = simulate(pp=pp, skip_output=skip_output, make_stage=make)
    for number, length in enumerate((3, 50, 17, 100)):
        group.submit(ask(f"r{number}", length, 6), at=1.5 * number)
    group.cancel("r1", at=9.5)
    group.run()
    for stage, logged in enumerate(stages):
        assert len(logged.late) < len(group.plans)
        ops = script(StagePlace(stage, pp), group.plans, late=logged.late)
        assert logged.ops == [(op.kind, op.step, op.channel) for op in ops]


@pytest.mark.parametrize("rendezvous", [True, False])
@pytest.mark.parametrize("credits", [1, 2, 3])
@pytest.mark.parametrize("stages", [2, 3, pytest.param(4, marks=pytest.mark.soak)])
def test_all_plans_in_all_interleavings(stages: int, credits: int, rendezvous: bool):
    """All sequences of four plans. Four stages have 2.6 of the 3 million states."""
    states = sum(
        Protocol.of(plans, stages, credits, rendezvous=rendezvous).explore()
        for plans in sequences(4)
    )
    assert states > 4 * 26


def test_some_plans_of_four_stages_in_all_interleavings():
    """Every seventh of the sequences; `make test-all` has them all."""
    some = islice(sequences(4), 0, None, 7)
    states = sum(Protocol.of(plans, 4, 3, rendezvous=True).explore() for plans in some)
    assert states > 10_000


@pytest.mark.parametrize("rendezvous", [True, False])
@pytest.mark.parametrize("plans", [CHAIN, MIDDLE, MIXED], ids=["chain", "middle", "mixed"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_long_sequences_at_full_depth(stages: int, plans: list[StepPlan], rendezvous: bool):
    """Long enough for every buffer to come round."""
    depth = StagePlace(0, stages).depth
    assert Protocol.of(plans, stages, depth, rendezvous=rendezvous).explore() > 100


def without_receives_ahead(
    place: StagePlace, runner: StageRunner[int], exchange: Exchange[int, Op]
) -> Stage[int, Op]:
    """As on GPUs, where steps are collected late."""
    return Stage(place, runner, exchange, ahead=False)


def test_the_script_of_a_last_stage_whose_events_fire_late():
    """Step 1 is launched before step 0 is collected. Step 2 reads what step 1 sampled: that is sent
    before its hidden states are waited for."""
    plans = [plan(0, True), plan(1, True), plan(2, True, 1)]
    ops = script(StagePlace(1, 2), plans, without_receives_ahead, lags=True)
    assert [f"{op.kind} {op.step}" for op in ops] == [
        "begin 0",
        "receive 0",
        "received 0",
        "begin 1",
        "receive 1",
        "received 1",
        "send 0",
        "end 0",
        "send 1",
        "end 1",
        "begin 2",
        "receive 2",
        "received 2",
        "send 2",
        "end 2",
    ]


@pytest.mark.parametrize("rendezvous", [True, False])
@pytest.mark.parametrize("stages", [2, 3])
def test_results_may_be_collected_a_step_late(stages: int, rendezvous: bool):
    """All sequences of four plans, at full depth."""
    states = sum(
        Protocol.of(
            plans,
            stages,
            StagePlace(0, stages).depth,
            rendezvous=rendezvous,
            make=without_receives_ahead,
            lags=True,
        ).explore()
        for plans in sequences(4)
    )
    assert states > 4 * 26


# ---- stages that are wrong, as others' were -------------------------------------------------


def believing(
    where: Callable[[StagePlace], bool], belief: Callable[[StepPlan], StepPlan]
) -> MakeStage:
    """A stage that, where it stands there, takes a plan to be another."""

    class Believer(Stage[int, Op]):
        def launch(self, plan: StepPlan, following: Following) -> Generator[Op, Any, Launched[int]]:
            return super().launch(belief(plan) if where(self._place) else plan, following)

    return Believer


def first(place: StagePlace) -> bool:
    return place.first


def last(place: StagePlace) -> bool:
    return place.last


class Hasty(Stage[int, Op]):
    """Fills a buffer without waiting for what it sent from it (vLLM #52015)."""

    def _await_sent(self, until: int) -> Generator[Op, Any, None]:
        return
        yield


def skips(plan: StepPlan) -> StepPlan:
    return replace(plan, expects_output=False)


def expects(plan: StepPlan) -> StepPlan:
    return replace(plan, expects_output=True)


def looks_back(plan: StepPlan) -> StepPlan:
    """By what this rank knew a step ago (sglang #26148; vLLM #54260, #54270)."""
    return replace(plan, expects_output=plan.step_id % 3 == 1)


WRONG: dict[str, tuple[MakeStage, Sequence[StepPlan], str]] = {
    "receives what is never sent": (believing(last, skips), CHAIN, "deadlock"),
    "sends what is never received": (believing(first, skips), MIXED, "sends, 0 receives|deadlock"),
    "an empty step still receives": (believing(first, expects), MIXED, "is sent|deadlock|receives"),
    "each end decides for itself": (believing(first, looks_back), MIXED, "is sent|deadlock"),
    "a buffer is filled too early": (Hasty, MIDDLE, "fills the buffer"),
    "an output's buffer is filled too early": (Hasty, CHAIN, "outputs are under way at once"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_stage_is_found(mistake: str):
    make, plans, found = WRONG[mistake]
    with pytest.raises(GroupError, match=found):
        Protocol.of(plans, 2, 3, rendezvous=True, make=make).explore()


class Forgetful(Stage[int, Op]):
    """Waits for hidden states before it has sent what they are made of."""

    def __init__(
        self, place: StagePlace, runner: StageRunner[int], exchange: Exchange[int, Op]
    ) -> None:
        super().__init__(place, runner, exchange, ahead=False)

    def must_collect(self, launched: Sequence[StepPlan], plan: StepPlan) -> bool:
        return len(launched) >= DEPTH


def test_a_last_stage_that_holds_back_what_it_waits_for_is_found():
    with pytest.raises(Violation, match=r"deadlock: .*stage 1 waits for .*'received', step=1"):
        Protocol.of(CHAIN, 2, 3, rendezvous=True, make=Forgetful, lags=True).explore()


def test_one_buffer_more_than_there_is_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages_module, "BUFFERS", 3)
    with pytest.raises(Violation, match="step 2 fills the buffer that step 0 is sent from"):
        Protocol.of(MIDDLE, 2, 3, rendezvous=True).explore()


def test_one_buffer_less_than_there_is_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(explore_module, "BUFFERS", 1)
    with pytest.raises(Violation, match="step 1 is received into the buffer that step 0 is read"):
        Protocol.of(MIDDLE, 2, 3, rendezvous=True)


def test_another_plan_than_was_said_to_follow_is_refused():
    class Wandering(Stage[int, Op]):
        def launch(self, plan: StepPlan, following: Following) -> Generator[Op, Any, Launched[int]]:
            return super().launch(plan, lambda: MIDDLE[0])

    with pytest.raises(GroupError, match="step 1 comes where 0 was to follow"):
        script(StagePlace(1, 2), MIDDLE, Wandering)


def test_a_violation_says_how_it_came_about():
    make, plans, _ = WRONG["receives what is never sent"]
    with pytest.raises(Violation, match=r"after issue 0, .*stage 0 goes on, "):
        Protocol.of(plans, 2, 3, rendezvous=True, make=make).explore()
