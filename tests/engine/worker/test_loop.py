"""The loop's order: orders one after another, and a transfer's report never behind two of them."""

from collections.abc import Generator
from dataclasses import dataclass, field

import pytest
from pds_engine.errors import GroupError, ProtocolError
from pds_engine.messages import (
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


class World:
    """Stands for all that a loop talks to; writes down in which order it does."""

    def __init__(self, *orders: Message, reports: bool = True) -> None:
        self.orders = list(orders)
        self.come_meanwhile: tuple[Message, ...] = ()
        """Orders that come while the first step waits."""
        self.followed: list[int | None] = []
        self.log: list[str] = []
        self.mailbox = Mailbox()
        self.activity = Activity(0)
        self.loop = Loop(self, self, self, self, self.mailbox, self.activity, reports=reports)  # type: ignore[arg-type]

    def send(self, message: Message) -> None:
        self.log.append(f"send {type(message).__name__}")

    def receive(self) -> Message | None:
        return self.orders.pop(0) if self.orders else None

    def step(
        self, plan: StepPlan, following: Following
    ) -> Generator[FakeWaiting, None, StepDone | None]:
        yield FakeWaiting(None, step=plan.step_id)
        self.orders += self.come_meanwhile
        self.come_meanwhile = ()
        after = following()
        self.followed.append(after and after.step_id)
        self.log.append(f"step {plan.step_id}, {self.activity.report().mailbox} orders wait")
        return StepDone(step_id=plan.step_id, tokens=(), logprobs=(), elapsed=0.0)

    def settle(self) -> None:
        self.log.append("settle")

    def push(self, push: Push) -> None:
        self.log.append(f"push {push.transfer}")

    def release(self, order: Release) -> None:
        self.log.append("release")
        self.mailbox.put(DONE)

    def forget(self, order: Forget) -> None:
        self.log.append("forget")


def plan(step: int, *pushes: Push) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=(Row(slot=0, gen=1, start=0, length=5),),
        expects_output=True,
        depends_on=-1,
        padded_tokens=5,
        pushes=pushes,
    )


PUSH = Push(transfer="t", src_pages=(), dst_pages=(), last=False)
RELEASE = Release(slot=0, gen=1, after_step=0)


def test_pages_are_pushed_when_they_are_computed_and_before_the_result_is_sent() -> None:
    world = World(plan(0, PUSH), plan(1))
    world.loop.turn()
    assert world.log == [
        "step 0, 1 orders wait",
        "settle",
        "push t",
        "send StepDone",
        "step 1, 0 orders wait",
        "send StepDone",
    ]


def test_a_step_that_waits_learns_which_one_follows() -> None:
    """Even where other orders come before it; they keep their turn."""
    world = World(plan(0), RELEASE)
    world.come_meanwhile = (plan(1), plan(2))
    world.loop.turn()
    assert world.followed == [1, 2, None]
    assert [line for line in world.log if "Done" not in line] == [
        "step 0, 3 orders wait",
        "release",
        "step 1, 1 orders wait",
        "step 2, 0 orders wait",
    ]


def test_other_ranks_than_the_first_of_the_last_stage_tell_no_result() -> None:
    world = World(plan(0), reports=False)
    world.loop.turn()
    assert world.log == ["step 0, 0 orders wait"]


def test_a_report_waits_for_one_order_at_most() -> None:
    world = World(RELEASE, Forget(transfer="t", epoch=1), Forget(transfer="u", epoch=1))
    world.loop.turn()
    assert world.log == ["release", "send PushDone", "forget", "forget"]


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
