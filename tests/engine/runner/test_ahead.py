"""Steps are launched before the results of earlier ones are read, and nothing changes by it.

Real models on a device whose events fire late: what a worker wires, but for the connections.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from late_device import LateDevice
from pds_engine.messages import Admit, Message, Release, Row, Sampling, StepDone, StepPlan
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.runner.edge import Edge
from pds_engine.runner.runner import Runner
from pds_engine.worker.loop import Loop
from pds_engine.worker.mailbox import Mailbox
from pds_engine.worker.watchdog import Activity
from runner_driver import Driver

COUNT = 5
PROMPTS = ((5, 9, 2, 31, 7, 7, 12), (3, 1, 4, 1, 5))
SAMPLINGS = (
    Sampling(max_tokens=COUNT, temperature=0.8, logprobs=2, prompt_logprobs=1),
    Sampling(max_tokens=COUNT, temperature=0.0, frequency_penalty=0.4),
)


@dataclass
class Arrived:
    """A transfer that must have ended when it is waited for."""

    content: Callable[[], Any]
    doing: str = "hidden"
    peer: int = 0
    step: int = 0

    def wait(self) -> Any:
        return self.content()


@dataclass
class Wire:
    """Both directions between two stages; what is not there yet is an error, not a wait."""

    hidden: deque[Any] = field(default_factory=deque)
    outputs: deque[Any] = field(default_factory=deque)

    def receive_hidden(self, plan: StepPlan) -> Arrived:
        return Arrived(self.hidden.popleft)

    def receive_output(self, plan: StepPlan) -> Arrived:
        return Arrived(self.outputs.popleft)

    def send_hidden(self, plan: StepPlan, hidden: Any) -> Arrived:
        self.hidden.append(hidden.clone())
        return Arrived(lambda: None)

    def send_output(self, plan: StepPlan, tokens: tuple[int, ...]) -> Arrived:
        self.outputs.append(tokens)
        return Arrived(lambda: None)


class Rank:
    """One stage of a model with its loop; `turn` gives it orders and returns what it reports."""

    def __init__(self, path: Path, place: StagePlace, wire: Wire, opens: Edge | None) -> None:
        driver = Driver(path, pp_rank=place.stage, parallelism={"pp": place.stages})
        self.runner = Runner(driver.config, driver.decoder, driver.layers, opens)
        stage: Stage[Any, Any] = Stage(place, self.runner, wire, ahead=False)
        self._orders: list[Message] = []
        self._sent: list[Message] = []
        self._loop = Loop(
            self,
            stage,
            self.runner,
            self,  # type: ignore[arg-type]
            Mailbox(),
            Activity(0),
            watch=lambda event: None,
            reports=place.last,
        )

    def send(self, message: Message) -> None:
        self._sent.append(message)

    def receive(self) -> Any:
        return self._orders.pop(0) if self._orders else None

    def turn(self, *orders: Message) -> list[StepDone]:
        self._orders += orders
        self._sent = []
        self._loop.turn()
        return [message for message in self._sent if isinstance(message, StepDone)]


def admits() -> list[Message]:
    return [
        Admit(
            slot=slot,
            gen=1,
            prompt_ids=prompt,
            output_ids=(),
            sampling=sampling,
            seed=40 + slot,
            pages=(slot,),
        )
        for slot, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True))
    ]


def row(slot: int, nth: int) -> Row:
    """What samples the request's token `nth`: its prompt, or the token before."""
    length = len(PROMPTS[slot])
    start, tokens = (0, length) if nth == 0 else (length + nth - 1, 1)
    scores = nth == 0 and SAMPLINGS[slot].prompt_logprobs is not None
    return Row(slot=slot, gen=1, start=start, length=tokens, samples=True, scores=scores)


def plan(step: int, rows: Sequence[Row], *, depends_on: int, pp: int = 1) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=tuple(rows),
        expects_output=pp > 1,
        depends_on=depends_on,
        padded_tokens=sum(each.length for each in rows),
    )


def told(done: Sequence[StepDone]) -> list[Any]:
    """All but the times."""
    return [(d.step_id, d.tokens, d.logprobs, d.prompt_logprobs, d.unsound) for d in done]


def together() -> list[StepPlan]:
    """Both requests in each step, which reads what the one before samples."""
    return [plan(step, [row(0, step), row(1, step)], depends_on=step - 1) for step in range(COUNT)]


def by_turns() -> list[StepPlan]:
    """One request a step: each reads what the last but one sampled."""
    return [
        plan(step, [row(step % 2, step // 2)], depends_on=step - 2 if step > 1 else -1, pp=2)
        for step in range(2 * COUNT)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_two_steps_are_launched_before_the_first_is_collected(
    family: str, request: pytest.FixtureRequest
) -> None:
    path, alone = request.getfixturevalue(family), StagePlace(0, 1)
    plans = together()
    plain = Rank(path, alone, Wire(), None).turn(*admits(), *plans)
    assert [len(done.tokens) for done in plain] == [2] * COUNT

    device = LateDevice()
    rank = Rank(path, alone, Wire(), device)
    assert rank.turn(*admits(), *plans) == []
    assert device.under_way == 2
    found = []
    for step in range(COUNT):
        device.fire()
        (done,) = rank.turn()
        found.append(done)
        assert device.under_way == min(2, COUNT - step - 1)
    assert told(found) == told(plain)
    assert [done.elapsed for done in found] == [1.5] * COUNT


def test_a_slot_changes_hands_while_its_last_step_computes(llama: Path) -> None:
    """Release and Admit come between two launches, before the first result is read."""
    first, second = admits()
    again = Admit(
        slot=0,
        gen=2,
        prompt_ids=PROMPTS[1],
        output_ids=(),
        sampling=SAMPLINGS[1],
        seed=41,
        pages=(2,),
    )
    reused = Row(slot=0, gen=2, start=0, length=len(PROMPTS[1]), samples=True)
    orders: list[Message] = [
        first,
        second,
        plan(0, [row(0, 0), row(1, 0)], depends_on=-1),
        Release(slot=0, gen=1, after_step=0),
        again,
        plan(1, [reused, row(1, 1)], depends_on=0),
    ]
    plain = Rank(llama, StagePlace(0, 1), Wire(), None).turn(*orders)
    device = LateDevice()
    rank = Rank(llama, StagePlace(0, 1), Wire(), device)
    assert rank.turn(*orders) == []
    assert device.under_way == 2
    device.fire()
    device.fire()
    found = rank.turn()
    assert told(found) == told(plain)
    assert found[1].tokens[0] == found[0].tokens[1]  # the same request, from the start


def test_the_last_of_two_stages_is_ahead_too(qwen3: Path) -> None:
    plans = by_turns()
    wire = Wire()
    first, last = (Rank(qwen3, StagePlace(at, 2), wire, None) for at in range(2))
    first.turn(*admits())
    last.turn(*admits())
    plain = []
    for each in plans:
        first.turn(each)
        plain += last.turn(each)
    assert len(plain) == len(plans)

    wire, device = Wire(), LateDevice()
    first, last = (
        Rank(qwen3, StagePlace(0, 2), wire, None),
        Rank(qwen3, StagePlace(1, 2), wire, device),
    )
    first.turn(*admits(), *plans[:2])
    assert last.turn(*admits(), *plans[:2]) == []
    assert device.under_way == 2
    found = []
    for after in [*plans[2:], None, None]:
        device.fire()
        found += last.turn()
        if after is not None:
            first.turn(after)
            assert last.turn(after) == []
            assert device.under_way == 2
    assert told(found) == told(plain)


def test_the_last_stage_collects_what_the_next_step_depends_on(qwen3: Path) -> None:
    """Its hidden states are not there before: nothing is launched, and nobody waits for them."""
    wire, device = Wire(), LateDevice()
    last = Rank(qwen3, StagePlace(1, 2), wire, device)
    first = Rank(qwen3, StagePlace(0, 2), wire, None)
    zero, one = (plan(step, [row(0, step)], depends_on=step - 1, pp=2) for step in range(2))
    first.turn(*admits(), zero)
    assert last.turn(*admits(), zero, one) == []
    assert (device.under_way, len(wire.outputs)) == (1, 0)
    device.fire()
    with pytest.raises(IndexError):  # where a real transfer waits for the first stage
        last.turn()
    assert len(wire.outputs) == 1
