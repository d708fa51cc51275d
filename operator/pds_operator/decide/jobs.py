"""How a Job that compiles stands, as its status and its pods say. Pure."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pds_operator.decide.actions import Delete, Problem, object_scope
from pds_operator.decide.ownership import Whose
from pds_operator.decide.round import Round
from pds_operator.facts.observed import seconds

Object = dict[str, Any]

PENDING_SECONDS = 120.0
"""How long the Job may look for a node, or its pods for room in a quota."""
UNPREPARED_SECONDS = 300.0
"""How long its node may take to set up its volumes and network."""
PASSING = ("ApiError", "ApiUnreachable")
"""Refusals that are tried again a few times: an API server that starts."""
TRIES = 3
CURES = {
    "QuotaExceeded": "raise the namespace's quota of jobs (count/jobs.batch), or delete old ones",
    "LimitRange": "let the LimitRange admit what the pods of the roles ask for",
    "NameTaken": "rename one of the two",
}
"""By the reason of a refusal."""
POLICY = "a policy or webhook refuses it: let it admit Jobs that have these labels and annotations"


class JobStage(Enum):
    """How far a Job is."""

    STARTING = "starting"
    """It looks for a node, or the node prepares its pod."""
    PENDING = "pending"
    """It has done so for too long."""
    BLOCKED = "blocked"
    """A container of it cannot start."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """The warm-up ended with an error."""
    LATE = "late"
    """Its deadline passed."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The stage of a Job, and what is known of it."""

    stage: JobStage
    message: str = ""
    at: float = 0.0
    """When it ended, or was pending for too long, in Unix seconds."""


def look(round_: Round, live: Object) -> JobFacts:
    """How `live` stands now; `round_` looks again when that changes by time alone."""
    name, meta = live["metadata"]["name"], live["metadata"]
    pods = [pod for pod in round_.observed.warmups if pod.owner == meta["uid"]]
    over = _ended(live)
    if "Complete" in over:
        return JobFacts(JobStage.DONE, at=_moment(over["Complete"]))
    if "Failed" in over:
        late = over["Failed"].get("reason") == "DeadlineExceeded"
        stage = JobStage.LATE if late else JobStage.FAILED
        errors = [f"{pod.name}: {pod.error}" for pod in pods if pod.error]
        why = errors[0] if errors else f"Job {name}: {over['Failed'].get('message', '')}"
        return JobFacts(stage, why, _moment(over["Failed"]))
    waits = next((f"{pod.name}: {pod.waits}" for pod in pods if pod.waits), "")
    if waits:
        return JobFacts(JobStage.BLOCKED, waits)
    unprepared = [pod.unprepared for pod in pods if pod.unprepared is not None]
    if any(pod.scheduled for pod in pods) and not unprepared:
        return JobFacts(JobStage.RUNNING, f"the Job {name} compiles")
    if unprepared:
        due = min(unprepared) + UNPREPARED_SECONDS
        why = "its node sets up no volumes, network or image for it"
    else:
        due = (seconds(meta.get("creationTimestamp")) or 0.0) + PENDING_SECONDS
        why = next((pod.unscheduled for pod in pods if pod.unscheduled), "")
        why = f"no node takes its pod: {why}" if why else _no_pod(name)
    if round_.now < due:
        round_.wake_at(due)
        return JobFacts(JobStage.STARTING, f"the Job {name} waits for a node")
    return JobFacts(JobStage.PENDING, f"the Job {name} found no room: {why}", due)


def refusal(round_: Round, name: str) -> Problem | None:
    """Why the API server does not take the Job `name`; None: it does, or may in a moment."""
    place = "Job", name
    if round_.observed.others.get(place) is Whose.STRANGER:
        return _refused(name, "NameTaken", "a Job of that name is somebody else's")
    failure = round_.observed.failures.get(f"Job/{name}")
    if failure is None or (failure.reason in PASSING and failure.count < TRIES):
        return None
    return _refused(name, failure.reason, failure.message)


def clear(round_: Round, live: Object, scope: str = "") -> None:
    """Delete it, and its pods with it; in `scope`, where it waits for what else is done there."""
    meta = live["metadata"]
    if not meta.get("deletionTimestamp"):
        scope = scope or object_scope(live)
        round_.actions.append(Delete("Job", meta["name"], meta["uid"], scope))


def ended(live: Object) -> bool:
    """It is complete, or has failed."""
    return bool(_ended(live))


def complete(live: Object) -> bool:
    """It has ended well."""
    return "Complete" in _ended(live)


def _ended(live: Object) -> dict[str, Object]:
    return {
        item["type"]: item
        for item in (live.get("status") or {}).get("conditions") or []
        if item["status"] == "True" and item["type"] in ("Complete", "Failed")
    }


def _moment(condition: Object) -> float:
    return seconds(condition.get("lastTransitionTime")) or 0.0


def _no_pod(name: str) -> str:
    return (
        "it has no pod; where a quota, LimitRange or policy of pods refuses it, "
        f"kubectl describe job {name} says so: raise the quota, or ask for less"
    )


def _refused(name: str, reason: str, message: str) -> Problem:
    cure = CURES.get(reason, POLICY)
    text = f"the Job {name} is refused ({reason}): {message[:300]}; {cure}"
    return Problem("WarmupJobRefused", text)
