"""The loop's order: orders one after another, and a transfer's report never behind two of them.

Events of steps fire late here where a test says so, as on a GPU.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import pytest
from pds_engine.errors import GroupError, ProtocolError
from pds_engine.messages import (
    CloseTransfer,
    Fault,
    Forget,
    Message,
    Push,
    PushDone,
    Release,
    Row,
    StepDone,
    StepPlan,
    Welcome,
)
from pds_engine.parallel.launch import OVER, Event, Launched, must_collect
from pds_engine.parallel.stage import Following
from pds_engine.worker.loop import Loop, drive
from pds_engine.worker.mailbox import Mailbox
from pds_engine.worker.watchdog import Activity

DONE = PushDone(transfer="t", rank=0, bytes=1, seconds=0.0)


@dataclass
class FakeWaiting:
    """Something that a step waits for."""

    answer: str | None
    doing: str = "hidden"
    peer: int = 3
    step: int = 0
    seen: list[tuple[str, int, int]] = field(default_factory=list)
    activity: Activity | None = None

    def wait(self) -> str | None:
        if self.activity is not None:
            report = self.activity.report()
            self.seen.append((report.doing, report.peer, report.step))
        return self.answer


@dataclass
class LateEvent:
    """Fires when the test says so."""

    fired: bool = False

    def wait(self) -> None:
        raise AssertionError("the loop would block")


class World:
    """Stands for all that a loop talks to; writes down in which order it does.

    Args:
        late: steps are over when `fire` is called; else when they are launched.
        sends_outputs: the rank is of the last of several stages.
    """

    def __init__(
        self,
        *orders: Message,
        reports: bool = True,
        late: bool = False,
        sends_outputs: bool = False,
    ) -> None:
        self.orders = list(orders)
        self.come_meanwhile: tuple[Message, ...] = ()
        """Orders that come while the first step waits."""
        self.followed: list[int | None] = []
        self.log: list[str] = []
        self.late, self.sends_outputs = late, sends_outputs
        self.events: list[LateEvent] = []
        self.watched: list[Event] = []
        self.mailbox = Mailbox()
        self.activity = Activity(0)
        self.loop = Loop(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.mailbox,
            self.activity,
            watch=self.watched.append,
            reports=reports,
        )

    def fire(self) -> None:
        """The oldest step that computes is over."""
        next(event for event in self.events if not event.fired).fired = True

    def turn(self, *orders: Message) -> list[str]:
        """What a turn does, with `orders` new."""
        self.orders += orders
        before = len(self.log)
        self.loop.turn()
        return self.log[before:]

    def send(self, message: Message) -> None:
        step = f" {message.step_id}" if isinstance(message, StepDone) else ""
        self.log.append(f"send {type(message).__name__}{step}")

    def receive(self) -> Message | None:
        return self.orders.pop(0) if self.orders else None

    def launch(
        self, plan: StepPlan, following: Following
    ) -> Generator[FakeWaiting, None, Launched[str]]:
        yield FakeWaiting(None, step=plan.step_id)
        self.orders += self.come_meanwhile
        self.come_meanwhile = ()
        after = following()
        self.followed.append(after and after.step_id)
        self.log.append(f"launch {plan.step_id}, {self.activity.report().mailbox} orders wait")
        if not self.late:
            return Launched(plan, OVER)
        self.events.append(LateEvent())
        return Launched(plan, self.events[-1])

    def must_collect(self, launched: Sequence[StepPlan], plan: StepPlan) -> bool:
        return must_collect(launched, plan, sends_outputs=self.sends_outputs)

    def collect(self, launched: Launched[str]) -> Generator[FakeWaiting, None, StepDone]:
        yield from ()
        self.log.append(f"collect {launched.plan.step_id}")
        return StepDone(step_id=launched.plan.step_id, tokens=(), logprobs=(), elapsed=0.0)

    def push(self, push: Push) -> None:
        self.log.append(f"push {push.transfer}")

    def release(self, order: Release) -> None:
        self.log.append("release")
        self.mailbox.put(DONE)

    def forget(self, order: Forget) -> None:
        self.log.append(f"forget {order.transfer}")

    def close(self, order: CloseTransfer) -> None:
        self.log.append(f"close {order.transfer}")


def plan(step: int, *pushes: Push, depends_on: int = -1) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=(Row(slot=0, gen=1, start=0, length=5),),
        expects_output=True,
        depends_on=depends_on,
        padded_tokens=5,
        pushes=pushes,
    )


PUSH = Push(transfer="t", src_pages=(), dst_pages=(), last=False)
RELEASE = Release(slot=0, gen=1, after_step=0)


def test_pages_are_pushed_when_they_are_computed_and_before_the_result_is_sent() -> None:
    world = World(plan(0, PUSH), plan(1))
    world.loop.turn()
    assert world.log == [
        "launch 0, 1 orders wait",
        "collect 0",
        "push t",
        "send StepDone 0",
        "launch 1, 0 orders wait",
        "collect 1",
        "send StepDone 1",
    ]


def test_a_step_that_waits_learns_which_one_follows() -> None:
    """Even where other orders come before it; they keep their turn."""
    world = World(plan(0), RELEASE)
    world.come_meanwhile = (plan(1), plan(2))
    world.loop.turn()
    assert world.followed == [1, 2, None]
    assert [line for line in world.log if "Done" not in line and "collect" not in line] == [
        "launch 0, 3 orders wait",
        "release",
        "launch 1, 1 orders wait",
        "launch 2, 0 orders wait",
    ]


def test_other_ranks_than_the_first_of_the_last_stage_tell_no_result() -> None:
    world = World(plan(0), reports=False)
    world.loop.turn()
    assert world.log == ["launch 0, 0 orders wait", "collect 0"]


def test_the_next_step_is_launched_before_the_first_is_collected() -> None:
    """A third one waits until then, and so does whatever comes behind it."""
    world = World(late=True)
    assert world.turn(plan(0)) == ["launch 0, 0 orders wait"]
    assert world.turn(plan(1), plan(2), RELEASE) == ["launch 1, 2 orders wait"]
    assert world.turn() == []
    assert world.watched == world.events
    world.fire()
    assert world.turn() == [
        "collect 0",
        "send StepDone 0",
        "launch 2, 1 orders wait",
        "release",
        "send PushDone",
    ]
    world.fire()
    world.fire()
    assert world.turn() == ["collect 1", "send StepDone 1", "collect 2", "send StepDone 2"]


def test_results_are_told_in_the_order_of_the_steps() -> None:
    world = World(plan(0), plan(1), late=True)
    world.turn()
    world.events[1].fired = True
    assert world.turn() == []
    world.fire()
    assert world.turn() == ["collect 0", "send StepDone 0", "collect 1", "send StepDone 1"]


def test_the_last_stage_sends_outputs_before_it_waits_for_a_step_that_reads_them() -> None:
    """Its hidden states would never come. A step that reads nothing is launched at once."""
    world = World(plan(0), plan(1, depends_on=0), late=True, sends_outputs=True)
    assert world.turn() == ["launch 0, 1 orders wait"]
    world.fire()
    assert world.turn() == ["collect 0", "send StepDone 0", "launch 1, 0 orders wait"]
    assert world.turn(plan(2, depends_on=0)) == ["launch 2, 0 orders wait"]


def test_orders_about_a_transfer_stay_behind_its_pushes() -> None:
    """Those about others need not wait: what is not computed is pushed later."""
    world = World(plan(0, PUSH), plan(1), late=True)
    orders = (
        CloseTransfer(transfer="t"),
        Forget(transfer="u", epoch=1),
        Forget(transfer="t", epoch=1),
    )
    assert world.turn(*orders)[-1] == "forget u"
    world.fire()
    assert world.turn() == ["collect 0", "push t", "send StepDone 0", "close t", "forget t"]


def test_a_rank_computes_as_long_as_a_step_is_not_collected() -> None:
    world = World(plan(0), plan(1), late=True)
    seen = []
    for _ in range(3):
        world.turn()
        world.activity.idle()
        report = world.activity.report()
        seen.append((report.doing, report.step, report.done))
        if not all(event.fired for event in world.events):
            world.fire()
    assert seen == [("compute", 0, -1), ("compute", 1, 0), ("idle", 1, 1)]


def test_a_report_waits_for_one_order_at_most() -> None:
    world = World(RELEASE, Forget(transfer="t", epoch=1), Forget(transfer="u", epoch=1))
    world.loop.turn()
    assert world.log == ["release", "send PushDone", "forget t", "forget u"]


def test_a_fault_of_the_transfer_thread_ends_the_loop() -> None:
    world = World(plan(0))
    world.mailbox.put(Fault(rank=0, code="x", message="no more"))
    with pytest.raises(GroupError, match="no more"):
        world.loop.turn()
    assert world.log == ["send Fault"]


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not take Welcome"):
        World(Welcome(incarnation="x")).loop.turn()


def test_while_a_step_waits_its_rank_says_for_whom() -> None:
    activity = Activity(0, clock=iter(range(100)).__next__)
    first, second = (
        FakeWaiting(answer, step=7, activity=activity, doing=doing)
        for answer, doing in (("h", "hidden"), (None, "sent"))
    )

    def step() -> Generator[FakeWaiting, str | None, str | None]:
        got = yield first
        assert activity.report().doing == "compute"
        yield second
        return got

    activity.begin(plan(7))
    assert drive(step(), activity) == "h"
    assert (*first.seen, *second.seen) == (("hidden", 3, 7), ("sent", 3, 7))


def test_a_report_says_what_a_rank_has_come_to() -> None:
    now = 0.0
    activity = Activity(2, clock=lambda: now)
    assert (activity.report().doing, activity.report().step) == ("setup", -1)
    for step in range(6):
        activity.begin(plan(step))
        now += 1.0
        report = activity.report()
        assert (report.doing, report.step, report.done, report.seconds) == (
            "compute",
            step,
            step - 1,
            1.0,
        )
        activity.end(plan(step))
    report = activity.report()
    assert (report.doing, report.done, report.seconds) == ("idle", 5, 0.0)
    assert report.plans == tuple(
        f"step {n}: 1 rows, 5 tokens, depends on -1, sends its output" for n in (2, 3, 4, 5)
    )
    assert (report.traffic.rank, report.traffic.steps, report.traffic.outputs_expected) == (2, 6, 6)
