"""What a stage exchanges, upon wires: the simulation's parallel.stage.Exchange."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pds_engine.errors import ProtocolError
from pds_engine.messages import StepPlan
from pds_engine.parallel.stage import BUFFERS, StagePlace

from pds_simulation.events import Signal
from pds_simulation.wire import Wire

INVALID = -1
"""What an output's buffer holds where nothing was sampled. No slot ever gets it."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states of a step: one number a token, in the plan's order of rows."""

    shard: int
    """Of which rank of its stage: rank t sends to rank t."""
    rows: tuple[tuple[int, ...], ...]


HiddenWire = Wire[Hidden]
OutputWire = Wire[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Wires:
    """The wires of one rank; None where its stage has none."""

    hidden_in: HiddenWire | None = None
    hidden_out: HiddenWire | None = None
    output_in: OutputWire | None = None
    output_out: OutputWire | None = None


class SimulatedExchange:
    """Sends from as many buffers as a stage counts on, each filled anew when its turn comes.

    `post` runs an action when the rank's computation so far is over.
    """

    def __init__(
        self, place: StagePlace, wires: Wires, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._wires = wires
        self._post = post
        self._hidden: list[Hidden | None] = [None] * BUFFERS
        self._outputs: list[tuple[int, ...]] = [()] * place.depth

    def receive_hidden(self, plan: StepPlan) -> Signal[Any]:
        return self._receive(plan, self._wires.hidden_in)

    def receive_output(self, plan: StepPlan) -> Signal[Any]:
        """What was sampled; () for a buffer that says that nothing was."""
        sampled = sum(row.samples for row in plan.rows)
        came: Signal[Any] = Signal(f"outputs of step {plan.step_id}")
        self._receive(plan, self._wires.output_in).then(
            lambda buffer: came.set(None if buffer is None else buffer[:sampled])
        )
        return came

    def send_hidden(self, plan: StepPlan, hidden: Hidden) -> Signal[Any]:
        at = plan.step_id % len(self._hidden)
        return self._send(plan, self._wires.hidden_out, self._hidden, at, hidden)

    def send_output(self, plan: StepPlan, tokens: tuple[int, ...]) -> Signal[Any]:
        buffer = tokens or (INVALID,)
        at = plan.step_id % len(self._outputs)
        return self._send(plan, self._wires.output_out, self._outputs, at, buffer)

    def _receive(self, plan: StepPlan, wire: Wire[Any] | None) -> Signal[Any]:
        if wire is None:
            raise ProtocolError(f"nothing leads here that step {plan.step_id} could receive from")
        answer: Signal[Any] = Signal(f"{wire.name} of step {plan.step_id}")
        self._post(lambda: wire.receive(plan.step_id).then(answer.set))
        return answer

    def _send(
        self, plan: StepPlan, wire: Wire[Any] | None, buffers: list[Any], at: int, value: Any
    ) -> Signal[Any]:
        if wire is None:
            raise ProtocolError(f"nothing leads from here that step {plan.step_id} could send by")
        left: Signal[Any] = Signal(f"{wire.name} of step {plan.step_id} to leave")

        def post() -> None:
            buffers[at] = value
            wire.send(plan.step_id, partial(buffers.__getitem__, at)).then(left.set)

        self._post(post)
        return left
