"""Compile ahead: Jobs that fill the cache for GPUs that no free node has (warm-up.md). Pure.

They belong to the target's revision, and no pod waits for them. A Job that has ended stays, as a
record, as long as its revision is the target: whoever wants it again deletes it.
"""

from dataclasses import dataclass
from typing import Any

from pds_operator import names
from pds_operator.decide import jobs, objects
from pds_operator.decide.actions import Problem
from pds_operator.decide.desired import Desired
from pds_operator.decide.jobs import JobStage
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.render import warmup
from pds_operator.render.warmup import Ahead

Object = dict[str, Any]

HINDERED = {
    JobStage.PENDING: "WarmupJobPending",
    JobStage.BLOCKED: "WarmupJobPending",
    JobStage.FAILED: "WarmupJobFailed",
    JobStage.LATE: "WarmupJobLate",
}


@dataclass(frozen=True, slots=True)
class Filling:
    """How the cache is filled for one kind of GPU."""

    target: str
    state: str
    """A word or two."""
    problem: Problem | None = None


def keep(round_: Round, target: Target, desired: Desired, *, held: bool) -> tuple[Filling, ...]:
    """Make and follow the Jobs of `compileCache.warmup.targets`; clear away those of others.

    held: the rollout to `target` stands still, and makes nothing.
    """
    given = desired.spec.compile_cache.warmup if desired.spec.compile_cache else None
    selector = (given.node_selector if given else None) or {}
    targets = (given.targets if given else None) or []
    kinds = [Ahead(name, selector) for name in dict.fromkeys(targets)]
    data, lost = target.revision.data, round_.observed.lost(target.revision.key)
    wanted = {
        str(job["metadata"]["name"]): job
        for kind in kinds
        for job in warmup.jobs(round_.owner, target.digest, data, kind)
    }
    for (what, name), live in round_.observed.objects.items():
        if what != "Job" or names.TARGET not in (live["metadata"].get("labels") or {}):
            continue
        if name not in wanted or _elsewhere(live, wanted[name]):
            jobs.clear(round_, live)
    return tuple(_filling(round_, job, able=not (lost or held)) for job in wanted.values())


def _elsewhere(live: Object, wanted: Object) -> bool:
    """Its nodes were chosen anew, and it has not ended well: no other change is followed."""
    chosen = [job["spec"]["template"]["spec"].get("nodeSelector") for job in (live, wanted)]
    return chosen[0] != chosen[1] and not jobs.complete(live)


def _filling(round_: Round, job: Object, *, able: bool) -> Filling:
    name, target = job["metadata"]["name"], job["metadata"]["labels"][names.TARGET]
    live = round_.observed.objects.get(("Job", name))
    if live is None:
        refused = jobs.refusal(round_, name)
        if able:
            objects.ensure(round_, job)
        return Filling(target, "waits" if refused is None else "refused", refused)
    found = jobs.look(round_, live)
    if found.stage is JobStage.DONE:
        return _done(round_, live, target)
    if found.stage not in HINDERED:
        return Filling(target, "compiling")
    blocked = f"the Job {name} cannot start: " if found.stage is JobStage.BLOCKED else ""
    cure = f"; once that is mended: kubectl delete job {name}" if jobs.ended(live) else ""
    problem = Problem(HINDERED[found.stage], f"{blocked}{found.message}{cure}")
    return Filling(target, found.stage.value, problem)


def _done(round_: Round, live: Object, target: str) -> Filling:
    """It has ended well; what it did is what its pod says, and nobody knows without one."""
    name, uid = live["metadata"]["name"], live["metadata"]["uid"]
    pods = [pod for pod in round_.observed.warmups if pod.owner == uid and not pod.error]
    unstored = next((pod.volume for pod in pods if pod.volume), "")
    if unstored:
        text = f"the Job {name} could not store what it compiles: {unstored}"
        return Filling(target, "not stored", Problem("WarmupJobFailed", text))
    if any(pod.targets != {target} for pod in pods):
        text = f"the Job {name} ended, and does not say that it compiled for {target}"
        return Filling(
            target, "not proved", Problem("WarmupJobFailed", f"{text}: its image knows no targets")
        )
    return Filling(target, "compiled" if pods else "ended")
