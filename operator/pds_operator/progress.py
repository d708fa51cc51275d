"""Whether a rollout gets on, from what is observed: no clock of ours runs. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from pds_operator.desired import Desired
from pds_operator.fleet import Group, Phase
from pds_operator.rollout import Step
from pds_operator.target import Target

PROGRESS_DEADLINE = 1800
"""As long as a warm-up or a start of an engine may take by default."""


@dataclass(frozen=True, slots=True)
class Progress:
    """When the rollout last came nearer to its end, and by when it must again."""

    since: float
    due: float | None = None
    """None: nothing is waited for, or for as long as it takes."""

    def overdue(self, now: float) -> bool:
        """The deadline is over."""
        return self.due is not None and now >= self.due


def progress(
    desired: Desired,
    target: Target,
    step: Step,
    fleet: list[Group],
    *,
    compiling: bool = False,
    compiled: float = 0.0,
) -> Progress:
    """How the rollout of `target` stands.

    Nearer comes: the revision becomes the target, is `compiled` (Unix seconds), a group of it is
    made for the first time, turns ready, or has been ready for minReadySeconds; an old group
    drains. A group that is made again after a failure brings nothing nearer. While its kernels are
    compiled first, the warm-up's own time-outs hold.
    """
    held = desired.rollout.min_ready_seconds or 0
    moments = [target.since, compiled]
    for group in fleet:
        if group.phase is Phase.LEAVING:
            moments += [pod.drain_deadline for pod in group.pods if pod.drain_deadline is not None]
        elif group.revision == target.digest:
            if not group.failures:
                moments += [pod.created for pod in group.pods]
            available = group.available_at(held)
            if available is not None:
                moments.append(available)
    since = max(moments)
    given = desired.rollout.progress_deadline_seconds
    limit = PROGRESS_DEADLINE if given is None else given
    waiting = not target.settled and not compiling and step.reached < step.last
    return Progress(since, since + limit if waiting and limit else None)


def waits_for(target: Target, fleet: Iterable[Group], before: Iterable[str] = ()) -> str:
    """What groups of the target that are not ready say of it.

    `before` is what the first of them waits for.
    """
    told = []
    for group in fleet:
        if group.revision == target.digest and group.phase is not Phase.LEAVING and not group.ready:
            pod = group.culprit or next((pod for pod in group.pods if not pod.ready), None)
            if pod is not None:
                why = pod.unscheduled or pod.message or "not ready"
                told.append(f"{pod.name}: {why[-300:]}")
    return "; ".join(told[:3] or ["no group of it could be made yet", *before])
