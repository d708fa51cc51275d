"""A worker's loop: takes orders one after another, drives steps to their end, sends reports."""

from collections import deque
from collections.abc import Generator
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
    def settle(self) -> None: ...


class TransferOrders(Protocol):
    """What the loop asks of kv.transfer.TransferThread."""

    def endpoint(self) -> KvEndpoint: ...
    def open(self, order: OpenTransfer) -> None: ...
    def push(self, push: Push) -> None: ...
    def close(self, order: CloseTransfer) -> None: ...
    def expect(self, order: Expect) -> None: ...
    def forget(self, order: Forget) -> None: ...
    def stop(self) -> None: ...


class Loop:
    """Takes orders from the link and reports from the mailbox as they come.

    Args:
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
        reports: bool = True,
    ) -> None:
        self._link = link
        self._stage = stage
        self._slots = slots
        self._transfers = transfers
        self._mailbox = mailbox
        self._activity = activity
        self._reports = reports
        self._orders: deque[AnyMessage] = deque()
        """Taken from the link, so that they can be counted, and not yet executed."""
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
        """Handle all that is waiting; a transfer's report never waits for more than one order."""
        while True:
            for report in self._mailbox.take():
                self._link.send(report)
                if isinstance(report, Fault):
                    raise GroupError(report.message)
            self._take_orders()
            if not self._orders:
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
            case OpenTransfer():
                self._transfers.open(order)
            case CloseTransfer():
                self._transfers.close(order)
            case Expect():
                self._transfers.expect(order)
            case Forget():
                self._transfers.forget(order)
            case _:
                raise ProtocolError(f"a worker does not take {type(order).__name__}")

    def _take_orders(self) -> None:
        while (order := self._link.receive()) is not None:
            self._orders.append(order)

    def _following(self) -> StepPlan | None:
        """The next step, if its plan has come."""
        self._take_orders()
        return next((order for order in self._orders if isinstance(order, StepPlan)), None)

    def _step(self, plan: StepPlan) -> None:
        self._activity.begin(plan)
        done = drive(self._stage.step(plan, self._following), self._activity)
        if plan.pushes:
            self._slots.settle()
        for push in plan.pushes:
            self._transfers.push(push)
        self._activity.end(plan)
        if done is not None and self._reports:
            self._link.send(done)


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
