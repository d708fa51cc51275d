"""Compile first: a new revision's kernels are made before its pods are (rollouts.md). Pure.

Only where a volume is shared and a revision serves meanwhile. There is a Job for each distinct pod
template. It stays until the rollout is over, as a record. One that is refused, or that starts
nothing, gives way for the rest of the rollout: new pods compile in their own init containers. That
is written on the revision, so that neither a restart nor a full quota makes a Job twice.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pds_operator import names
from pds_operator.decide import jobs, objects
from pds_operator.decide import target as targets
from pds_operator.decide.actions import Problem, revision_scope
from pds_operator.decide.fleet import Group
from pds_operator.decide.jobs import JobStage
from pds_operator.decide.rollout import Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import GaveWay
from pds_operator.render import warmup

Object = dict[str, Any]


class WarmupState(Enum):
    """Where compiling stands."""

    NONE = "none"
    """There is nothing to compile first, or it is done."""
    RUNNING = "running"
    FAILED = "failed"
    IN_INIT = "in init"
    """A Job gave way: the surge pods compile while the old ones serve."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """The state, and what is known of it."""

    state: WarmupState = WarmupState.NONE
    message: str = ""
    ended: float = 0.0
    """When the last Job did, or gave way, in Unix seconds: pods may be made since."""
    waits: str = ""
    """Why no Job can start, while it is RUNNING: no time-out of the warm-up's runs yet."""
    gave_way: Problem | None = None
    """Why pods compile what a Job should have."""

    @property
    def holds(self) -> bool:
        """No pod of the revision is made now."""
        return self.state in (WarmupState.RUNNING, WarmupState.FAILED)


@dataclass(frozen=True, slots=True)
class _Fate:
    """What one Job comes to in this round."""

    warmup: Warmup
    gave: GaveWay | None = None
    """It gives way, or did."""
    stale: Object | None = None
    """To be deleted."""


def wanted(round_: Round, target: Target, data: Object) -> list[Object]:
    """The Jobs that compile `target`, rendered as `data`, before its pods.

    Nobody needs them where no revision serves meanwhile, or no volume is shared; and none can
    start where the Secret that it mounts is gone.
    """
    if not target.rolling or round_.observed.lost(target.revision.key):
        return []
    return warmup.jobs(round_.owner, target.digest, data)


def first(round_: Round, target: Target, step: Step) -> Warmup:
    """Make, follow and clear away the Jobs."""
    named = {
        str(job["metadata"]["name"]): job for job in wanted(round_, target, target.revision.data)
    }
    for (kind, name), live in round_.observed.objects.items():
        ours = kind == "Job" and names.TARGET not in (live["metadata"].get("labels") or {})
        if ours and name not in named:
            jobs.clear(round_, live)
    creates = any(move.create for move in step.moves.values())
    fates = {name: _fate(round_, target, job, creates=creates) for name, job in named.items()}
    gave = {name: fate.gave for name, fate in fates.items() if fate.gave is not None}
    if gave.keys() - _noted(target).keys():
        targets.note_gave_way(round_, target, gave)
    for fate in fates.values():
        if fate.stale is not None:
            # Only once that is written down: a Job that is gone says nothing.
            jobs.clear(round_, fate.stale, revision_scope(target.digest))
    return _together([fate.warmup for fate in fates.values()])


def _noted(target: Target) -> dict[str, GaveWay]:
    """What gave way since the revision became the target."""
    return {} if target.fresh else dict(target.revision.gave_way)


def _fate(round_: Round, target: Target, job: Object, *, creates: bool) -> _Fate:
    name = job["metadata"]["name"]
    live = round_.observed.objects.get(("Job", name))
    own = round_.staying(target.digest)
    gave = _noted(target).get(name)
    if gave is not None:
        return _Fate(_in_init(gave, own), gave, live)
    if live is not None:
        return _follow(round_, live, own)
    if own:
        state = WarmupState.IN_INIT if _cold(own) else WarmupState.NONE
        return _Fate(Warmup(state))
    if not creates:
        return _Fate(Warmup())
    refused = jobs.refusal(round_, name)
    if refused is not None:
        return _give_way(refused, round_.now, own)
    objects.ensure(round_, job)
    failure = round_.observed.failures.get(f"Job/{name}")
    waits = failure.message if failure else ""
    return _Fate(Warmup(WarmupState.RUNNING, f"the Job {name} compiles", waits=waits))


def _follow(round_: Round, live: Object, own: list[Group]) -> _Fate:
    found, name = jobs.look(round_, live), live["metadata"]["name"]
    match found.stage:
        case JobStage.DONE:
            return _Fate(Warmup(ended=found.at))
        case JobStage.FAILED:
            return _Fate(Warmup(WarmupState.FAILED, found.message))
        case JobStage.RUNNING:
            return _Fate(Warmup(WarmupState.RUNNING, found.message))
        case JobStage.BLOCKED:
            text = f"the Job {name} cannot start: {found.message}"
            return _Fate(Warmup(WarmupState.RUNNING, text, waits=found.message))
        case JobStage.STARTING if not own:
            return _Fate(Warmup(WarmupState.RUNNING, found.message))
        case JobStage.LATE:
            text = f"{found.message}: compileCache.warmup.timeoutSeconds is not enough here"
            return _give_way(Problem("WarmupJobLate", text), found.at, own, live)
    return _give_way(Problem("WarmupJobPending", found.message), found.at or round_.now, own, live)


def _give_way(why: Problem, at: float, own: list[Group], live: Object | None = None) -> _Fate:
    gave = GaveWay(why.reason, why.message, at)
    return _Fate(_in_init(gave, own), gave, live)


def _in_init(gave: GaveWay, own: list[Group]) -> Warmup:
    state = WarmupState.IN_INIT if _cold(own) else WarmupState.NONE
    why = Problem(gave.reason, gave.message)
    return Warmup(state, gave.message, ended=gave.at, gave_way=why)


def _cold(own: list[Group]) -> bool:
    """A pod still has to compile, or is still to be made."""
    return not own or any(pod.proof is None for group in own for pod in group.pods)


def _together(each: list[Warmup]) -> Warmup:
    """The Jobs of a revision as one: it waits for the last of them, and for what cannot start."""
    order = (WarmupState.FAILED, WarmupState.RUNNING, WarmupState.IN_INIT, WarmupState.NONE)
    state = min((one.state for one in each), key=order.index, default=WarmupState.NONE)
    like = [one for one in each if one.state is state]
    return Warmup(
        state,
        "; ".join(dict.fromkeys(one.message for one in like if one.message)),
        ended=max((one.ended for one in each), default=0.0),
        waits="; ".join(one.waits for one in like) if all(one.waits for one in like) else "",
        gave_way=next((one.gave_way for one in each if one.gave_way is not None), None),
    )
