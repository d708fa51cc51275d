"""One rank in virtual time: executes the scheduler's orders strictly in the order they come."""

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Message, Release, StepDone, StepPlan
from pds_engine.parallel.launch import Launched
from pds_engine.parallel.stage import Following

from pds_simulation.events import Action, Events, Signal
from pds_simulation.exchange import Hidden
from pds_simulation.runner import SimulatedRunner

StepTime = Callable[[int, int, int], float]
"""Seconds that a stage takes for a step of so many tokens, which attend so many."""


class Stepper(Protocol):
    """parallel.stage.Stage, or a variant under test."""

    def step(
        self, plan: StepPlan, following: Following
    ) -> Generator[Signal[Any], Any, StepDone | None]: ...


class RankTransfers(Protocol):
    """What the worker asks of simulation.transfers.SimulatedTransfers."""

    @property
    def faults(self) -> list[str]: ...
    def order(self, order: Message) -> None: ...
    def step_done(self, plan: StepPlan) -> None: ...


class Lockstep:
    """The ranks of one stage, of all dp ranks, end a step together: each collective waits for all
    of them.

    Args:
        tp: ranks of one attention group, which share a step's tokens out evenly.
    """

    def __init__(self, events: Events, tp: int, dp: int = 1) -> None:
        self._events = events
        self._tp = tp
        self._ranks = tp * dp
        self._waiting: list[tuple[StepPlan, float, Action]] = []

    def arrive(self, plan: StepPlan, seconds: float, over: Action) -> None:
        """One rank has begun to compute; `over` when all have, and have taken their time.

        Raises:
            ProtocolError: it is in another step than others, or of another shape: collectives would
                hang, or mix up their tokens. Or its tokens cannot be shared out.
        """
        tokens = sum(row.length for row in plan.rows)
        if plan.padded_tokens < tokens or plan.padded_tokens % self._tp:
            raise ProtocolError(
                f"step {plan.step_id}: {tokens} tokens, padded to {plan.padded_tokens}, do not "
                f"share out evenly among {self._tp} ranks"
            )
        self._waiting.append((plan, seconds, over))
        first = self._waiting[0][0]
        if (plan.step_id, plan.dp_tokens) != (first.step_id, first.dp_tokens):
            steps = [(each.step_id, each.dp_tokens) for each, *_ in self._waiting]
            raise ProtocolError(f"ranks of a stage compute different steps: {steps}")
        if len(self._waiting) == self._ranks:
            longest = max(seconds for _, seconds, _ in self._waiting)
            for _, _, action in self._waiting:
                self._events.after(longest, action)
            self._waiting = []


class SimulatedWorker:
    """Runs the steps that the stage's coroutine describes.

    What the coroutine does after its computation happens when that is over in virtual time: `post`
    holds it back until then.
    """

    def __init__(
        self,
        events: Events,
        runner: SimulatedRunner,
        lockstep: Lockstep,
        step_time: StepTime,
        report: Callable[[Message], None],
    ) -> None:
        self.place = runner.place
        self.shard = runner.shard
        self.runner = runner
        self.stage: Stepper | None = None
        self.transfers: RankTransfers | None = None
        self.waits_for: Signal[Any] | None = None
        self.busy = 0.0
        """Seconds of computation so far."""
        self.executed: list[tuple[int, float, float]] = []
        """Step, begin and end of every computation."""
        self._events = events
        self._lockstep = lockstep
        self._step_time = step_time
        self._report = report
        self._orders: deque[Message] = deque()
        self._plan: StepPlan | None = None
        self._step: Generator[Signal[Any], Any, StepDone | None] | None = None
        self._computes = False
        self._begun = 0.0
        self._held: list[Action] = []

    @property
    def name(self) -> str:
        return f"stage {self.place.stage} rank {self.shard}"

    @property
    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        step = "" if self._plan is None else f" in step {self._plan.step_id}"
        return [
            *([f"{self.name} waits for {self.waits_for.about}{step}"] if self.waits_for else []),
            *([f"{self.name} still computes{step}"] if self._computes else []),
            *([f"{self.name} has {len(self._orders)} orders left"] if self._orders else []),
            *([f"{self.name} holds slots {list(self.runner.slots)}"] if self.runner.slots else []),
            *(self.transfers.faults if self.transfers is not None else []),
        ]

    def give(self, order: Message) -> None:
        """An order of the scheduler has come."""
        self._orders.append(order)
        if self._step is None:
            self._next()

    def post(self, action: Action) -> None:
        """Do this now, or when the computation under way is over."""
        if self._computes:
            self._held.append(action)
        else:
            action()

    # ---- parallel.stage.StageRunner ------------------------------------------------------------

    def launch(self, plan: StepPlan, hidden: Hidden | None) -> Launched[Hidden]:
        self._computes = True
        self._begun = self._events.now
        seconds = self._step_time(
            self.place.stage,
            sum(row.length for row in plan.rows),
            sum(row.start + row.length for row in plan.rows),
        )
        self._lockstep.arrive(plan, seconds, self._computed)
        return self.runner.launch(plan, hidden)

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        self.runner.accept(plan, tokens)

    # ---- steps ---------------------------------------------------------------------------------

    def _next(self) -> None:
        while self._orders and self._step is None:
            order = self._orders.popleft()
            match order:
                case StepPlan():
                    if self.stage is None:
                        raise ProtocolError(f"{self.name} has no stage to run")
                    self._plan = order
                    self._step = self.stage.step(order, self._following)
                    self._resume(None)
                case Admit():
                    self.runner.admit(order)
                case Release():
                    self.runner.release(order)
                case _ if self.transfers is not None:
                    self.transfers.order(order)
                case _:
                    raise ProtocolError(f"a worker does not take {type(order).__name__}")

    def _following(self) -> StepPlan | None:
        return next((order for order in self._orders if isinstance(order, StepPlan)), None)

    def _resume(self, answer: Any) -> None:
        self.waits_for = None
        if self._step is None or self._plan is None:
            raise ProtocolError(f"{self.name} is in no step")
        try:
            awaited = self._step.send(answer)
        except StopIteration as stop:
            self.post(partial(self._end, stop.value))
        else:
            self.post(partial(self._await, awaited))

    def _computed(self) -> None:
        self._computes = False
        if self._plan is not None:
            self.busy += self._events.now - self._begun
            self.executed.append((self._plan.step_id, self._begun, self._events.now))
        held, self._held = self._held, []
        for action in held:
            action()

    def _await(self, awaited: Signal[Any]) -> None:
        self.waits_for = awaited
        awaited.then(self._resume)

    def _end(self, done: StepDone | None) -> None:
        plan, self._plan, self._step = self._plan, None, None
        if done is not None:
            self._report(replace(done, elapsed=self._events.now - self._begun))
        if plan is not None and self.transfers is not None:
            self.transfers.step_done(plan)
        self._next()
