"""Every interleaving of what the stages wait for and send: model checking of the exchanges.

A stage's coroutine is run alone, with an exchange that records. What it posts and waits for does
not depend on what is in the messages, so this script is all there is to know of it. A state is how
far each stage is in its script, which steps are issued, and how many transfers of each channel have
ended. Everything that can happen next is tried from each state: the next step is issued, a stage
goes on to where it waits next, or a transfer ends. A plan may come in time for a stage to post its
receive ahead, or too late: both are tried.
"""

from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product, zip_longest
from typing import Any, Literal, NamedTuple, TypeVar

from pds_engine.errors import GroupError
from pds_engine.messages import Row, StepDone, StepPlan
from pds_engine.parallel.launch import Launched
from pds_engine.parallel.stage import BUFFERS, Exchange, Stage, StagePlace, StageRunner

V = TypeVar("V")
R = TypeVar("R")
Kind = Literal["begin", "send", "receive", "sent", "received", "end"]


class Op(NamedTuple):
    """Something that a stage does: it begins or ends a step, posts a transfer on a channel, or
    waits until its transfer number `number` on that channel has left or come."""

    kind: Kind
    step: int
    channel: int = -1
    """Hidden states of stage r leave on channel r, outputs on the last stage's."""
    number: int = -1


class Violation(GroupError):
    """Something that must never happen, and how it came about."""

    code = "protocol_violation"


class _Recorder:
    """Exchange and runner of a stage that writes down what it does."""

    def __init__(self, place: StagePlace) -> None:
        self._place = place
        self.ops: list[Op] = []
        self._posted: dict[tuple[str, int], int] = {}

    def receive_hidden(self, plan: StepPlan) -> Op:
        earlier = plan.step_id - BUFFERS
        if earlier >= 0 and Op("end", earlier) not in self.ops:
            raise Violation(
                f"step {plan.step_id} is received into the buffer that step {earlier} is read from"
            )
        return self._post("receive", plan, self._place.stage - 1)

    def receive_output(self, plan: StepPlan) -> Op:
        return self._post("receive", plan, self._place.stages - 1)

    def send_hidden(self, plan: StepPlan, hidden: int) -> Op:
        return self._post("send", plan, self._place.stage)

    def send_output(self, plan: StepPlan, tokens: tuple[int, ...]) -> Op:
        return self._post("send", plan, self._place.stages - 1)

    def launch(self, plan: StepPlan, hidden: int | None) -> Launched[int]:
        if not self._place.last:
            return Launched(plan, hidden=0)
        done = StepDone(step_id=plan.step_id, tokens=(0,), logprobs=(), elapsed=0.0)
        return Launched(plan, read=lambda: done)

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        """Nothing waits for it."""

    def _post(self, kind: Literal["send", "receive"], plan: StepPlan, channel: int) -> Op:
        number = self._posted.get((kind, channel), 0)
        self._posted[kind, channel] = number + 1
        self.ops.append(Op(kind, plan.step_id, channel, number))
        return Op("sent" if kind == "send" else "received", plan.step_id, channel, number)


MakeStage = Callable[[StagePlace, StageRunner[int], Exchange[int, Op]], Stage[int, Op]]


def script(
    place: StagePlace,
    plans: Sequence[StepPlan],
    make: MakeStage = Stage,
    late: Container[int] = (),
    *,
    lags: bool = False,
) -> list[Op]:
    """All that a stage does for `plans`, in order; those `late` come after the step before.

    `lags`: each step is collected as late as it may be (parallel.launch), not when it is launched.
    """
    recorder = _Recorder(place)
    stage = make(place, recorder, recorder)
    launched: list[Launched[int]] = []

    def collect() -> None:
        oldest = launched.pop(0)
        _drive(stage.collect(oldest), recorder.ops)
        recorder.ops.append(Op("end", oldest.plan.step_id))

    for plan, after in zip_longest(plans, plans[1:]):
        while stage.must_collect([each.plan for each in launched], plan):
            collect()
        recorder.ops.append(Op("begin", plan.step_id))
        following = None if after is None or after.step_id in late else after
        launched.append(_drive(stage.launch(plan, partial(_same, following)), recorder.ops))
        if not lags:
            collect()
    while launched:
        collect()
    return recorder.ops


def _drive(step: Generator[Op, Any, R], ops: list[Op]) -> R:
    """Run it, and write down what it waits for."""
    answer = None
    while True:
        try:
            awaited = step.send(answer)
        except StopIteration as stop:
            result: R = stop.value
            return result
        ops.append(awaited)
        answer = (0,) if awaited.kind == "received" else None


def sequences(steps: int) -> Iterator[tuple[StepPlan, ...]]:
    """All sequences of so many plans: each sends its output or not, and depends on any earlier one
    that does, or on none. More than the scheduler would ever plan."""
    choices = [
        [(sends, on) for sends in (False, True) for on in range(-1, at)] for at in range(steps)
    ]
    for chosen in product(*choices):
        if all(on < 0 or chosen[on][0] for _, on in chosen):
            yield tuple(plan(at, sends, on) for at, (sends, on) in enumerate(chosen))


def plan(step_id: int, expects_output: bool, depends_on: int = -1) -> StepPlan:
    """A step of one row; it samples if its output is expected."""
    row = Row(slot=0, gen=1, start=0, length=1, samples=expects_output)
    return StepPlan(
        step_id=step_id,
        rows=(row,),
        expects_output=expects_output,
        depends_on=depends_on,
        padded_tokens=1,
    )


Event = tuple[Literal["issue", "stage", "channel"], int]
"""A step is issued, a stage goes on, or a channel's oldest transfer ends."""


class PipelineState(NamedTuple):
    """What tells one moment of a pipeline from another."""

    issued: int
    at: tuple[int, ...]
    """Of each stage: its next op."""
    over: tuple[int, ...]
    """Of each channel: transfers that have ended."""
    late: tuple[bool, ...]
    """Of each stage: whether the next plan came too late for its receive to be posted ahead, as the
    script does. It is then posted when that step begins."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the stages of a pipeline may do, step after step.

    `credits`: steps in flight at most. `rendezvous`: see simulation.wire.
    """

    scripts: tuple[tuple[Op, ...], ...]
    steps: int
    credits: int
    rendezvous: bool

    @classmethod
    def of(
        cls,
        plans: Sequence[StepPlan],
        stages: int,
        credits: int,
        *,
        rendezvous: bool,
        make: MakeStage = Stage,
        lags: bool = False,
    ) -> "Protocol":
        """`lags`: see `script`; of the last stage, which has results to collect."""
        places = [StagePlace(rank, stages) for rank in range(stages)]
        scripts = tuple(
            tuple(script(place, plans, make, lags=lags and place.last)) for place in places
        )
        return cls(scripts, len(plans), credits, rendezvous)

    def explore(self) -> int:
        """Go through all states; how many there are.

        Raises:
            Violation: some order of events leads to a deadlock, to a message that is left over, to
                two steps that meet in one transfer, or to a buffer that is filled while it is read.
        """
        known = _Known(self.scripts)
        nowhere = (0,) * len(self.scripts)
        first = PipelineState(0, nowhere, nowhere, (False,) * len(self.scripts))
        came_from: dict[PipelineState, tuple[PipelineState, Event] | None] = {first: None}
        unseen = deque([first])
        while unseen:
            state = unseen.popleft()
            try:
                following = list(self._next(state, known))
                if not following:
                    self._check_rest(state, known)
            except Violation as violation:
                raise Violation(f"{violation}, after {_story(state, came_from)}") from None
            for event, reached in following:
                if reached not in came_from:
                    came_from[reached] = state, event
                    unseen.append(reached)
        return len(came_from)

    def _next(self, state: PipelineState, known: "_Known") -> Iterator[tuple[Event, PipelineState]]:
        issued, places, over, late = state
        if issued < self.steps and issued - known.ended[places[-1]] < self.credits:
            yield ("issue", issued), state._replace(issued=issued + 1)
        for stage, at in enumerate(places):
            ops = self.scripts[stage]
            if at < len(ops) and self._enabled(ops[at], state):
                if self.rendezvous:
                    known.check_buffers(stage, at, over)
                moved = _put(places, stage, known.until[stage][at])
                ahead = known.ahead[stage][at]
                for is_late in self._lateness(ahead, ops[at], late[stage], issued):
                    after = PipelineState(issued, moved, over, _put(late, stage, is_late))
                    yield ("stage", stage), after
        for channel, count in enumerate(over):
            if count < min(known.posted(state, channel)):
                known.check_meeting(channel, count)
                yield ("channel", channel), state._replace(over=_put(over, channel, count + 1))

    def _lateness(self, ahead: int, op: Op, late: bool, issued: int) -> tuple[bool, ...]:
        """Whether the receive of step `ahead`, if any, is still to be posted after `op`."""
        if ahead >= 0:
            return (True, False) if issued > ahead else (True,)
        return (late and op.kind != "begin",)

    def _enabled(self, op: Op, state: PipelineState) -> bool:
        if op.kind == "begin":
            return op.step < state.issued
        if op.kind == "sent" and not self.rendezvous:
            return True
        return state.over[op.channel] > op.number

    def _check_rest(self, state: PipelineState, known: "_Known") -> None:
        stuck = [
            f"stage {stage} waits for {ops[at]}"
            for stage, (ops, at) in enumerate(zip(self.scripts, state.at, strict=True))
            if at < len(ops)
        ]
        if stuck:
            raise Violation(f"deadlock: {', '.join(stuck)}")
        for channel in range(len(self.scripts)):
            sent, received = known.posted(state, channel)
            if sent != received:
                raise Violation(f"channel {channel}: {sent} sends, {received} receives")


class _Known:
    """What follows from the scripts alone. Channel c leads from stage c to the one after it, the
    last one to the first."""

    def __init__(self, scripts: Sequence[Sequence[Op]]) -> None:
        receivers = [*scripts[1:], scripts[0]]
        self.sends = [_steps(ops, "send", c) for c, ops in enumerate(scripts)]
        self.receives = [_steps(ops, "receive", c) for c, ops in enumerate(receivers)]
        self._sent = [_before(ops, "send", c) for c, ops in enumerate(scripts)]
        self._received = [_before(ops, "receive", c) for c, ops in enumerate(receivers)]
        self.ended = _before(scripts[-1], "end", -1)
        """Steps that the last stage has ended, by how far it is."""
        self.until = [[_next_wait(ops, at) for at in range(len(ops))] for ops in scripts]
        """Where a stage that goes on comes to its next wait."""
        self.ahead = [
            [_ahead(ops, at, self.until[stage][at]) for at in range(len(ops))]
            for stage, ops in enumerate(scripts)
        ]
        """The step whose receive it posts on the way, before that step begins; or -1."""
        self._filled = [
            [self._fills(ops[at : self.until[stage][at]], len(scripts)) for at in range(len(ops))]
            for stage, ops in enumerate(scripts)
        ]

    def posted(self, state: PipelineState, channel: int) -> tuple[int, int]:
        """Sends and receives on the channel, by how far the stages are."""
        receiver = (channel + 1) % len(state.at)
        received = self._received[channel][state.at[receiver]] - state.late[receiver]
        return self._sent[channel][state.at[channel]], received

    def check_buffers(self, stage: int, at: int, over: Sequence[int]) -> None:
        """A send fills the buffer of its step; an earlier step's transfer may still read it."""
        for channel, number, step in self._filled[stage][at]:
            if over[channel] <= number:
                earlier = self.sends[channel][number]
                raise Violation(f"step {step} fills the buffer that step {earlier} is sent from")

    def _fills(self, ops: Sequence[Op], stages: int) -> list[tuple[int, int, int]]:
        """Channel and number of the transfers whose buffers `ops` fill again, and by which step."""
        found = []
        for op in ops:
            if op.kind == "send":
                last = op.channel == stages - 1
                buffers = StagePlace(stages - 1, stages).depth if last else BUFFERS
                for number, earlier in enumerate(self.sends[op.channel][: op.number]):
                    if (op.step - earlier) % buffers == 0:
                        found.append((op.channel, number, op.step))
        return found

    def check_meeting(self, channel: int, number: int) -> None:
        """Both ends of a transfer must mean the same step."""
        sent, received = self.sends[channel][number], self.receives[channel][number]
        if sent != received:
            raise Violation(f"channel {channel}: step {sent} is sent, {received} is received")


def _steps(ops: Sequence[Op], kind: Kind, channel: int) -> list[int]:
    return [op.step for op in ops if (op.kind, op.channel) == (kind, channel)]


def _before(ops: Sequence[Op], kind: Kind, channel: int) -> list[int]:
    """How many such ops come before each place in `ops`, and before its end."""
    found = ((op.kind, op.channel) == (kind, channel) for op in ops)
    return list(accumulate(found, initial=0))


def _next_wait(ops: Sequence[Op], at: int) -> int:
    """The place after `at` where a stage may have to wait, or the end."""
    waits = ("begin", "sent", "received")
    return next((i for i in range(at + 1, len(ops)) if ops[i].kind in waits), len(ops))


def _ahead(ops: Sequence[Op], at: int, until: int) -> int:
    begun = max((op.step for op in ops[: at + 1] if op.kind == "begin"), default=-1)
    return max(
        (op.step for op in ops[at:until] if op.kind == "receive" and op.step > begun), default=-1
    )


def _put(values: tuple[V, ...], at: int, value: V) -> tuple[V, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _same(value: V) -> V:
    return value


def _story(
    state: PipelineState, came_from: dict[PipelineState, tuple[PipelineState, Event] | None]
) -> str:
    events = []
    while (step := came_from[state]) is not None:
        state, (what, which) = step
        events.append({"stage": f"stage {which} goes on"}.get(what, f"{what} {which}"))
    return ", ".join(reversed(events)) or "nothing"
