"""A worker's loop: takes orders one after another, launches steps, collects them, sends reports.

A step is collected when its event has fired. Until then the next one is launched behind it, where
its plan has come: on a GPU the host stands between no two steps (parallel.launch).
"""

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

import zmq
from torch import Tensor

from pds_engine.errors import GroupError, ProtocolError
from pds_engine.messages import (
    Admit,
    AnyMessage,
    CloseTransfer,
    Expect,
    Fault,
    Forget,
    KvEndpoint,
    Message,
    OpenTransfer,
    Push,
    Release,
    StepPlan,
)
from pds_engine.parallel.exchange import Waiting
from pds_engine.parallel.launch import Event, Launched, behind
from pds_engine.parallel.stage import Stage
from pds_engine.wire import Link
from pds_engine.worker.mailbox import Mailbox
from pds_engine.worker.watchdog import Activity

R = TypeVar("R")


class OrderLink(Protocol):
    """What the loop asks of wire.Link."""

    def send(self, message: Message) -> None: ...
    def receive(self) -> AnyMessage | None: ...


class SlotTable(Protocol):
    """What the loop asks of runner.Runner, beside what the stage does."""

    def admit(self, order: Admit) -> None: ...
    def release(self, order: Release) -> None: ...


class TransferOrders(Protocol):
    """What the loop asks of kv.transfer.TransferThread."""

    def endpoint(self) -> KvEndpoint: ...
    def open(self, order: OpenTransfer) -> None: ...
    def push(self, push: Push) -> None: ...
    def close(self, order: CloseTransfer) -> None: ...
    def expect(self, order: Expect) -> None: ...
    def forget(self, order: Forget) -> None: ...
    def stop(self) -> None: ...


TransferOrder = OpenTransfer | CloseTransfer | Expect | Forget


class Loop:
    """Takes orders from the link and reports from the mailbox as they come.

    Args:
        watch: has `mailbox` woken once an event has fired.
        reports: this rank reports the results of steps: it is the last stage's first.
    """

    def __init__(
        self,
        link: OrderLink,
        stage: Stage[Tensor, Waiting[Any]],
        slots: SlotTable,
        transfers: TransferOrders,
        mailbox: Mailbox,
        activity: Activity,
        *,
        watch: Callable[[Event], None],
        reports: bool = True,
    ) -> None:
        self._link = link
        self._stage = stage
        self._slots = slots
        self._transfers = transfers
        self._mailbox = mailbox
        self._activity = activity
        self._watch = watch
        self._reports = reports
        self._orders: deque[AnyMessage] = deque()
        """Taken from the link, so that they can be counted, and not yet executed."""
        self._launched: deque[Launched[Tensor]] = deque()
        """Steps that are not collected, in order."""
        self._held: deque[tuple[int, TransferOrder]] = deque()
        """Orders about transfers, each with the step whose pushes go before it."""
        activity.mailbox = self._orders.__len__

    def run(self, link: Link) -> None:
        """Never returns.

        Raises:
            GroupError: the scheduler or the transfer thread is gone, or an order was wrong.
        """
        poller = zmq.Poller()
        for source in (link.socket, link.monitor, self._mailbox.descriptor):
            poller.register(source, zmq.POLLIN)
        while True:
            self._activity.idle()
            poller.poll()
            self.turn()
            if link.lost:
                raise GroupError("the scheduler has closed its connection")

    def turn(self) -> None:
        """Handle all that can be handled now; a transfer's report never waits for more than one
        order. A step that may not be launched yet stays, and the orders behind it."""
        while True:
            for report in self._mailbox.take():
                self._link.send(report)
                if isinstance(report, Fault):
                    raise GroupError(report.message)
            self._collect()
            self._take_orders()
            if not self._orders or self._must_collect(self._orders[0]):
                return
            self.handle(self._orders.popleft())

    def handle(self, order: AnyMessage) -> None:
        """Execute one order.

        Raises:
            ProtocolError: it is none that a worker takes, or does not fit what the slots hold.
            RankLost: another rank is gone, and the step with it.
        """
        match order:
            case StepPlan():
                self._step(order)
            case Admit():
                self._slots.admit(order)
            case Release():
                self._slots.release(order)
            case OpenTransfer() | CloseTransfer() | Expect() | Forget():
                step = behind(order.transfer, self._plans)
                if step is None:
                    self._transfer(order)
                else:
                    self._held.append((step, order))
            case _:
                raise ProtocolError(f"a worker does not take {type(order).__name__}")

    def _take_orders(self) -> None:
        while (order := self._link.receive()) is not None:
            self._orders.append(order)

    def _following(self) -> StepPlan | None:
        """The next step, if its plan has come."""
        self._take_orders()
        return next((order for order in self._orders if isinstance(order, StepPlan)), None)

    @property
    def _plans(self) -> list[StepPlan]:
        """Of the steps that are not collected."""
        return [launched.plan for launched in self._launched]

    def _must_collect(self, order: AnyMessage) -> bool:
        """Whether `order` is a step that waits until another one is collected."""
        return isinstance(order, StepPlan) and self._stage.must_collect(self._plans, order)

    def _step(self, plan: StepPlan) -> None:
        self._activity.begin(plan)
        launched = drive(self._stage.launch(plan, self._following), self._activity)
        self._launched.append(launched)
        if not launched.event.fired:
            self._watch(launched.event)
        self._collect()

    def _collect(self) -> None:
        """Collect the steps whose events have fired, in order."""
        while self._launched and self._launched[0].event.fired:
            plan = self._launched[0].plan
            done = drive(self._stage.collect(self._launched.popleft()), self._activity)
            for push in plan.pushes:
                self._transfers.push(push)
            self._activity.end(plan)
            if done is not None and self._reports:
                self._link.send(done)
            while self._held and self._held[0][0] <= plan.step_id:
                self._transfer(self._held.popleft()[1])

    def _transfer(self, order: TransferOrder) -> None:
        match order:
            case OpenTransfer():
                self._transfers.open(order)
            case CloseTransfer():
                self._transfers.close(order)
            case Expect():
                self._transfers.expect(order)
            case Forget():
                self._transfers.forget(order)


def drive(step: Generator[Waiting[Any], Any, R], activity: Activity) -> R:
    """Run a step to its end, blocked while it waits."""
    answer = None
    while True:
        try:
            waiting = step.send(answer)
        except StopIteration as end:
            result: R = end.value
            return result
        with activity.waiting(waiting.doing, waiting.peer, waiting.step):
            answer = waiting.wait()
