"""Compile first: a new revision's kernels are made before its pods are (rollouts.md). Pure.

Only where a volume is shared and a revision serves meanwhile. The Job stays until the rollout is
over, as a record; one that finds no node makes room for the surge pods, which compile in their own
init containers.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pds_operator import names
from pds_operator.decide import objects
from pds_operator.decide.actions import Delete, object_scope
from pds_operator.decide.fleet import Group
from pds_operator.decide.rollout import Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import seconds
from pds_operator.render import warmup

Object = dict[str, Any]

PENDING_SECONDS = 60.0
"""How long the Job may look for a node."""


class WarmupState(Enum):
    """Where compiling stands."""

    NONE = "none"
    """There is nothing to compile first, or it is done."""
    RUNNING = "running"
    FAILED = "failed"
    IN_INIT = "in init"
    """No node for the Job: the surge pods compile while the old ones serve."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """The state, and what is known of it."""

    state: WarmupState = WarmupState.NONE
    message: str = ""
    ended: float = 0.0
    """When the Job did, or was given up, in Unix seconds: pods may be made since."""
    waits: str = ""
    """Why its pod cannot start, while it is RUNNING: no time-out of the warm-up's runs yet."""

    @property
    def holds(self) -> bool:
        """No pod of the revision is made now."""
        return self.state in (WarmupState.RUNNING, WarmupState.FAILED)


def job(round_: Round, target: Target, data: Object) -> Object | None:
    """The Job that compiles `target`, rendered as `data`, before its pods; None: there is none.

    Nobody needs it where no revision serves meanwhile, or no volume is shared; and it cannot start
    where the Secret that it mounts is gone.
    """
    if not target.rolling or round_.observed.lost(target.revision.key):
        return None
    return warmup.job(round_.owner, target.digest, data)


def first(round_: Round, target: Target, step: Step) -> Warmup:
    """Make, follow and clear away the Job."""
    owner, observed = round_.owner, round_.observed
    name = names.warmup(owner.name, target.digest)
    wanted = job(round_, target, target.revision.data)
    for (kind, other), stale in observed.objects.items():
        if kind == "Job" and (wanted is None or other != name):
            _clear(round_, stale)
    if wanted is None:
        return Warmup()
    live = observed.objects.get(("Job", name))
    own = round_.staying(target.digest)
    if live is None and own:
        cold = any(pod.proof is None for group in own for pod in group.pods)
        return Warmup(WarmupState.IN_INIT if cold else WarmupState.NONE)
    if live is None:
        if not any(move.create for move in step.moves.values()):
            return Warmup()
        objects.ensure(round_, wanted)
        return Warmup(WarmupState.RUNNING, f"the Job {name} compiles")
    return _follow(round_, target, live, own)


def _follow(round_: Round, target: Target, live: Object, own: list[Group]) -> Warmup:
    name = live["metadata"]["name"]
    pods = [pod for pod in round_.observed.warmups if pod.revision == target.digest]
    ended = {
        item["type"]: item
        for item in (live.get("status") or {}).get("conditions") or []
        if item["status"] == "True"
    }
    if "Complete" in ended:
        return Warmup(ended=seconds(ended["Complete"].get("lastTransitionTime")) or 0.0)
    if "Failed" in ended:
        errors = [f"{pod.name}: {pod.error}" for pod in pods if pod.error]
        why = errors[0] if errors else f"Job {name}: {ended['Failed'].get('message', '')}"
        return Warmup(WarmupState.FAILED, why)
    waits = next((f"{pod.name}: {pod.waits}" for pod in pods if pod.waits), "")
    if waits:
        return Warmup(WarmupState.RUNNING, f"the Job {name} cannot start: {waits}", waits=waits)
    if any(pod.scheduled for pod in pods):
        return Warmup(WarmupState.RUNNING, f"the Job {name} compiles")
    due = (seconds(live["metadata"].get("creationTimestamp")) or 0.0) + PENDING_SECONDS
    if round_.now < due and not own:
        round_.wake_at(due)
        return Warmup(WarmupState.RUNNING, f"the Job {name} waits for a node")
    _clear(round_, live)
    why = next((pod.unscheduled for pod in pods if pod.unscheduled), "it has no pod")
    return Warmup(WarmupState.IN_INIT, f"the Job {name} found no node: {why}", due)


def _clear(round_: Round, live: Object) -> None:
    meta = live["metadata"]
    if not meta.get("deletionTimestamp"):
        round_.actions.append(Delete("Job", meta["name"], meta["uid"], object_scope(live)))
