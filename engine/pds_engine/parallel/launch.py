"""Steps that are launched and not yet collected: how many there may be, and what must come first.

Launching a step queues its work on the device; collecting it reads the result on the host. The next
step is launched in between, so that a GPU never waits for the host. On a CPU a step is over when it
is launched, and collected at once. Pure; no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pds_engine.messages import StepDone, StepPlan

H = TypeVar("H")
"""Hidden states, in whatever form the runner has them."""

DEPTH = 2
"""Steps that are launched and not collected, at most: one computes, and one waits behind it."""


class Event(Protocol):
    """The end of a step's work on the device."""

    @property
    def fired(self) -> bool:
        """Whether all of it is computed, and copied to the host what the host reads."""

    def wait(self) -> None:
        """Block until it has fired."""


class Over:
    """The event of a step that was over when it was launched."""

    fired = True

    def wait(self) -> None:
        """Nothing is left to wait for."""


OVER = Over()


@dataclass(frozen=True, slots=True)
class Launched(Generic[H]):
    """A step on its way through the device."""

    plan: StepPlan
    event: Event = OVER
    hidden: H | None = None
    """For the next stage; None: this is the last one."""
    read: Callable[[], StepDone] | None = None
    """On every rank of the last stage: the result, once `event` has fired."""

    def collect(self) -> StepDone | None:
        """Wait until the step is computed; its result, on the last stage."""
        self.event.wait()
        return None if self.read is None else self.read()


def must_collect(launched: Sequence[StepPlan], plan: StepPlan, *, sends_outputs: bool) -> bool:
    """Whether the oldest of `launched` is to be collected before `plan` is launched.

    Args:
        sends_outputs: this is the last of several stages. The hidden states of `plan` come only
            after the outputs that it depends on were sent, which collecting does.
    """
    if not launched:
        return False
    return len(launched) >= DEPTH or (sends_outputs and launched[0].step_id <= plan.depends_on)


def behind(transfer: str, launched: Sequence[StepPlan]) -> int | None:
    """The last of `launched` that pushes pages of `transfer`: an order about it waits until that
    step is collected, as its pages are pushed then. None: it waits for nothing."""
    pushing = [p.step_id for p in launched if any(push.transfer == transfer for push in p.pushes)]
    return max(pushing, default=None)
