"""Whether a rollout gets on, from what is observed and what was noted of it. Pure.

Its deadline counts only time in which it could get on and somebody watched: not while it is held,
while nodes are missing, or while there was no operator. What is used up stands on the revision, so
that neither a restart nor an absence of the operator changes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pds_operator.decide.fleet import Group, Phase
from pds_operator.decide.rollout import Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import Waited

PROGRESS_DEADLINE = 1800
"""As long as a warm-up or a start of an engine may take by default."""
PRESENCE_SECONDS = 90.0
"""More than that between two looks was an absence. Rounds come every half a minute at the least."""
NOTE_SECONDS = 30.0
"""So often what is used up is written down, or ten times in a short deadline."""


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """When the rollout last came nearer to its end, and by when it must again."""

    since: float
    due: float | None = None
    """None: nothing is waited for, or for as long as it takes."""
    note: Waited | None = None
    """What is to be written down now."""
    look: float | None = None
    """When to write down the next."""

    def overdue(self, now: float) -> bool:
        """The deadline is over."""
        return self.due is not None and now >= self.due


def progress(
    round_: Round,
    target: Target,
    step: Step,
    since: float,
    *,
    waits: bool,
    able: bool,
) -> RolloutProgress:
    """How the rollout of `target` stands, whose last progress was at `since`.

    waits: something is to come, and nothing with a time-out of its own (the warm-up's Job).
    able: it could come now (`judge.able`).
    """
    now, given = round_.now, round_.asked.rollout.progress_deadline_seconds
    limit = float(PROGRESS_DEADLINE if given is None else given)
    if not waits or not limit or target.settled or step.reached >= step.last:
        return RolloutProgress(since)
    noted = target.revision.waited
    if noted is None or noted.since != since:
        noted = Waited(since, 0.0, since)
    if noted.seconds >= limit:
        return RolloutProgress(since, now)
    if not able:
        return RolloutProgress(since)
    every = min(NOTE_SECONDS, limit / 10)
    gap = max(0.0, now - noted.at)
    used = noted.seconds + _watched(gap, every)
    left = max(0.0, limit - used)
    if gap < every and left:
        return RolloutProgress(since, now + left, None, min(noted.at + every, now + left))
    return RolloutProgress(since, now + left, Waited(since, used, now), now + min(left, every))


def _watched(gap: float, every: float) -> float:
    """What counts of the time since it was last written down, which is done so often: all or none.

    More than that between two looks was an absence.
    """
    return gap if gap <= min(PRESENCE_SECONDS, 3 * every) else 0.0


def last_progress(round_: Round, target: Target, compiled: float) -> float:
    """When the rollout of `target` last came nearer to its end, in Unix seconds.

    The revision became the target, was `compiled`, a group of it was made for the first time,
    turned ready, or has been ready for minReadySeconds; an old group drained. A group that is made
    again after a failure brings nothing nearer.
    """
    held = round_.asked.rollout.min_ready_seconds or 0
    moments = [target.since, compiled]
    for group in round_.fleet:
        if group.phase is Phase.LEAVING:
            moments += [pod.drain_deadline for pod in group.pods if pod.drain_deadline is not None]
        elif group.revision == target.digest:
            if not group.failures and not group.disruptions:
                moments += [pod.created for pod in group.pods]
            available = group.available_at(held)
            if available is not None:
                moments.append(available)
    return max(moments)


def waits_for(target: Target, fleet: Iterable[Group], before: Iterable[str] = ()) -> str:
    """What groups of the target that are not ready say of it.

    `before` is what the first of them waits for.
    """
    waiting = []
    for group in fleet:
        if group.revision == target.digest and group.phase is not Phase.LEAVING and not group.ready:
            pod = group.culprit or next((pod for pod in group.pods if not pod.ready), None)
            if pod is not None:
                why = pod.unscheduled or pod.message or "not ready"
                if pod.unprepared is not None and why == "not ready":
                    why = "its volumes, its network or its image are not there"
                waiting.append(f"{pod.name}: {why[-300:]}")
    return "; ".join(waiting[:3] or ["no group of it could be made yet", *before])
