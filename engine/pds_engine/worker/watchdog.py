"""The worker's watchdog: a thread that reports to the scheduler where this rank stands.

The worker's own thread may be blocked in a step, waiting for another stage; this one goes on as
long as the process does, so that its silence means something (parallel.watch decides what).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from pds_engine.keys import Keys
from pds_engine.messages import Doing, Hello, Progress, StepPlan
from pds_engine.parallel.exchange import TrafficCounts
from pds_engine.parallel.watch import PERIOD
from pds_engine.wire import Link
from pds_engine.worker.side import SideThread

logger = logging.getLogger("pds.worker")

_PLANS = 4
"""Plans that a report names."""
_State = tuple[Doing, int, int, float]


class Activity:
    """What a rank is doing. The worker's thread writes it, the watchdog's reads it."""

    def __init__(self, rank: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rank = rank
        self.counts = TrafficCounts(rank)
        self.compiles: Callable[[], int] = _none
        self.unneeded: Callable[[], int] = _none
        self.mailbox: Callable[[], int] = _none
        self._clock = clock
        self._done = -1
        self._plans: deque[str] = deque(maxlen=_PLANS)
        self._under_way: deque[int] = deque()
        """Steps that are begun and not done."""
        # One tuple, replaced at once: a report never mixes two states.
        self._state: _State = ("setup", -1, -1, clock())

    def idle(self) -> None:
        """All orders are executed; a step that was launched may still compute."""
        if not self._under_way:
            self._enter("idle", self._state[1], -1)
        elif self._state[:2] != ("compute", self._under_way[0]):
            self._enter("compute", self._under_way[0], -1)

    def begin(self, plan: StepPlan) -> None:
        """A step begins."""
        self.counts.steps += 1
        self.counts.outputs_expected += plan.expects_output
        self._plans.append(summary(plan))
        self._under_way.append(plan.step_id)
        self._enter("compute", plan.step_id, -1)

    def end(self, plan: StepPlan) -> None:
        """The oldest step is computed, and what it sends is under way."""
        self._done = plan.step_id
        self._under_way.popleft()
        self.idle()

    @contextmanager
    def waiting(self, doing: Doing, peer: int, step: int) -> Iterator[None]:
        """Within, the rank waits for `peer`, about `step`."""
        before = self._state
        self._enter(doing, step, peer)
        yield
        self._enter(before[0], before[1], before[2])

    def report(self) -> Progress:
        doing, step, peer, since = self._state
        return Progress(
            rank=self.rank,
            done=self._done,
            step=step,
            doing=doing,
            peer=peer,
            seconds=round(self._clock() - since, 3),
            mailbox=self.mailbox(),
            plans=tuple(self._plans),
            traffic=self.counts.traffic(self.unneeded()),
            compiles=self.compiles(),
        )

    def _enter(self, doing: Doing, step: int, peer: int) -> None:
        self._state = (doing, step, peer, self._clock())


def summary(plan: StepPlan) -> str:
    """A plan in one line of a dump."""
    tokens = sum(row.length for row in plan.rows)
    sends = ", sends its output" if plan.expects_output else ""
    return (
        f"step {plan.step_id}: {len(plan.rows)} rows, {tokens} tokens, "
        f"depends on {plan.depends_on}{sends}"
    )


class Watchdog(SideThread):
    """Reports `activity` about once a second, over a connection of its own.

    It may end: the worker's own connection decides whether the scheduler is still there.
    """

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        address: str,
        keys: Keys,
        hello: Hello,
        activity: Activity,
    ) -> None:
        super().__init__(context, address, keys, hello)
        self._activity = activity

    def work(self, link: Link) -> None:
        link.send(self._activity.report())
        while link.receive() is not None:
            continue  # the scheduler answers Hello, and no more
        self._stopping.wait(PERIOD)


def _none() -> int:
    return 0
