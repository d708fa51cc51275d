"""One stage's part of every step: what it waits for, what it sends, and in which order.

A step is two coroutines: one launches it, and one collects its result (parallel.launch). They yield
what they wait for; whoever drives them answers with what came. So the worker runs them on real
transfers (parallel.exchange), the simulation on virtual ones, and model checking in every order
there can be. No torch, no socket, no clock.

    hidden states   stage r → r + 1, every step
    outputs         last stage → first, for steps whose plan says expects_output, and no other

Nothing is decided here: both ends of an exchange act on the same plan (pipeline.md).
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pds_engine.errors import ProtocolError
from pds_engine.messages import StepDone, StepPlan
from pds_engine.parallel.launch import H, Launched, must_collect

W = TypeVar("W")
"""What is waited for."""
_Sent = TypeVar("_Sent", contravariant=True)
_Wait = TypeVar("_Wait", covariant=True)

BUFFERS = 2
"""Hidden states that may be under way to the next stage at once."""


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Where a rank stands in its pipeline."""

    stage: int
    stages: int

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    @property
    def depth(self) -> int:
        """Steps that the scheduler has in flight at most: one a stage, and one that waits."""
        return self.stages + 1


class StageRunner(Protocol[H]):
    """The computation of one stage: runner.Runner, or the simulation's."""

    def launch(self, plan: StepPlan, hidden: H | None) -> Launched[H]:
        """Begin to compute a step from the previous stage's hidden states; None on the first
        stage. Steps are computed in the order in which they are launched."""

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        """On the first stage: what `plan`'s sampling rows sampled, in order; () if it has none.
        Rows whose slot has another generation by now are passed over."""


class Exchange(Protocol[_Sent, _Wait]):
    """Starts transfers between stages, and returns something to wait for. Nothing here blocks."""

    def receive_hidden(self, plan: StepPlan) -> _Wait:
        """Answered with the previous stage's hidden states of this step."""

    def receive_output(self, plan: StepPlan) -> _Wait:
        """Answered with the tokens of the plan's sampling rows; () when it has none."""

    def send_hidden(self, plan: StepPlan, hidden: _Sent) -> _Wait:
        """Answered when the buffer may be used again."""

    def send_output(self, plan: StepPlan, tokens: tuple[int, ...]) -> _Wait:
        """Answered when the buffer may be used again."""


Following = Callable[[], StepPlan | None]


def _unknown() -> None:
    return None


class Stage(Generic[H, W]):
    """Runs the steps of one stage, one after another.

    Args:
        ahead: a step's hidden states may be received while the step before it computes. Not by
            NCCL, whose receives spin on an SM until they are answered (pipeline.md).
    """

    def __init__(
        self,
        place: StagePlace,
        runner: StageRunner[H],
        exchange: Exchange[H, W],
        *,
        ahead: bool = True,
    ) -> None:
        self._place = place
        self._receives_ahead = ahead and not place.first
        self._runner = runner
        self._exchange = exchange
        self._expected: deque[tuple[StepPlan, W]] = deque()
        """On the first stage: outputs that are on their way, by step."""
        self._sent: deque[tuple[int, W]] = deque()
        self._ahead: tuple[int, W] | None = None
        """A step, and the receive that was posted for it while the one before it was executed."""

    def launch(
        self, plan: StepPlan, following: Following = _unknown
    ) -> Generator[W, Any, Launched[H]]:
        """Launch `plan`, and send the next stage its hidden states.

        `following` gives the plan after it, once that has come: its hidden states may arrive while
        this one computes. It is asked when this one's have.

        Raises:
            ProtocolError: another plan comes than was said to follow.
        """
        place = self._place
        arriving = None if place.first else self._arriving(plan)
        if place.first and not place.last:
            # Steps that far back are done, or the scheduler would not have issued this one.
            yield from self._take_outputs(max(plan.depends_on, plan.step_id - place.depth))
            if plan.expects_output:
                self._expected.append((plan, self._exchange.receive_output(plan)))
        hidden = None if arriving is None else (yield arriving)
        if self._receives_ahead and (after := following()) is not None:
            self._ahead = after.step_id, self._exchange.receive_hidden(after)
        launched = self._runner.launch(plan, hidden)
        if not place.last:
            yield from self._await_sent(plan.step_id - BUFFERS)
            if launched.hidden is not None:
                sending = self._exchange.send_hidden(plan, launched.hidden)
                self._sent.append((plan.step_id, sending))
        return launched

    def must_collect(self, launched: Sequence[StepPlan], plan: StepPlan) -> bool:
        """Whether the oldest of `launched` is to be collected before `plan` is launched."""
        place = self._place
        return must_collect(launched, plan, sends_outputs=place.last and not place.first)

    def collect(self, launched: Launched[H]) -> Generator[W, Any, StepDone | None]:
        """Wait until a step is computed; on the last stage send its tokens to the first one, where
        its plan says so, and return its result. Steps are collected in the order of their launch.

        Raises:
            ProtocolError: more outputs are under way than there can be steps in flight.
        """
        plan, place = launched.plan, self._place
        done = launched.collect()
        if done is not None and plan.expects_output:
            yield from self._await_sent(plan.step_id - place.depth)
            sending = self._exchange.send_output(plan, done.tokens)
            self._sent.append((plan.step_id, sending))
            if len(self._sent) > place.depth:
                raise ProtocolError(f"{len(self._sent)} outputs are under way at once")
        return done

    def step(
        self, plan: StepPlan, following: Following = _unknown
    ) -> Generator[W, Any, StepDone | None]:
        """Launch `plan` and collect it before anything else, as where a step is over when it is
        launched."""
        launched = yield from self.launch(plan, following)
        return (yield from self.collect(launched))

    def _arriving(self, plan: StepPlan) -> W:
        """The receive of this step's hidden states, posted now if it was not before."""
        if self._ahead is None:
            return self._exchange.receive_hidden(plan)
        (step_id, arriving), self._ahead = self._ahead, None
        if step_id != plan.step_id:
            raise ProtocolError(f"step {plan.step_id} comes where {step_id} was to follow")
        return arriving

    def _take_outputs(self, until: int) -> Generator[W, Any, None]:
        """Take the outputs of all steps up to `until` that send one, in order."""
        while self._expected and self._expected[0][0].step_id <= until:
            plan, arriving = self._expected.popleft()
            self._runner.accept(plan, (yield arriving))

    def _await_sent(self, until: int) -> Generator[W, Any, None]:
        """Wait until what was sent for steps up to `until` has left its buffers."""
        while self._sent and self._sent[0][0] <= until:
            yield self._sent.popleft()[1]
