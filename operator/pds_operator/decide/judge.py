"""Whether a revision that is rolled out is bad, and what shows it. Pure.

A round judges only the revision that the spec asks for, while that takes the place of one that
served. It never judges a revision that it has gone back to: there is no way from one bad revision
to another.
"""

from dataclasses import dataclass

from pds_operator.decide.compiling import Warmup, WarmupState
from pds_operator.decide.fleet import Group
from pds_operator.decide.progress import RolloutProgress, waits_for
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import NO_PROOF, Observed, Revision

CRASHES = 3
"""Failures in a row of one group."""
FAULTS = 5
"""Failed requests, at the least."""
FAULT_RATE = 0.2
"""Failed requests of all; and more than twice the rate of the other revisions."""
CRASHES_ON = "CrashLoopBackOff"
"""A router that waits for this has an image and a configuration, and no engine is to blame."""
OF_A_REVISION = ("config", "keys")
"""Volumes that differ from one revision to the next."""
SECONDS_APART = 2.0
"""Times are whole seconds: a second target within one second is noted with a later one."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a revision is bad: a reason, and what was seen."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def evidence(
    round_: Round, target: Target, progress: RolloutProgress, warmup: Warmup
) -> Evidence | None:
    """What speaks against the target; the clearest first."""
    if not target.judged or target.fresh:
        return None
    if warmup.state is WarmupState.FAILED:
        return Evidence("WarmupFailed", warmup.message)
    own = round_.staying(target.digest)
    # What was seen before it became the target (a retry makes it anew) counts no more.
    begin = target.since - SECONDS_APART
    late = [g for g in own if g.culprit is None or g.culprit.created >= begin]
    return (
        _warmup(late)
        or _misconfigured(late)
        or _crashes(late)
        or _faults(round_.observed, target)
        or _late(round_, target, progress, warmup)
    )


def able(round_: Round, target: Target) -> bool:
    """Whether the target could get on now.

    Nodes, quotas, volumes that were there before and routers that nobody keeps are not a revision's
    fault. Time without them does not count against it.
    """
    observed, bare = round_.observed, _mounts_as_before(target)
    own = round_.staying(target.digest)
    starved = (
        any(group.unscheduled for group in own)
        or any(
            bare and pod.unprepared is not None and not pod.waits
            for group in own
            for pod in group.pods
        )
        or any(scope.startswith(("group/", "schedule/")) for scope in observed.failures)
        or any(router.unscheduled for router in observed.router_pods)
    )
    return not starved and any(
        router.ready or (router.waits and not router.waits.startswith(CRASHES_ON))
        for router in observed.router_pods
    )


def _mounts_as_before(target: Target) -> bool:
    """Its pods mount the volumes of the revision that served, whatever its roles are."""

    def volumes(revision: Revision) -> dict[str, list[object]]:
        roles = revision.data.get("roles") or {}
        return {
            role: [
                volume
                for volume in ((data.get("template") or {}).get("spec") or {}).get("volumes") or []
                if volume.get("name") not in OF_A_REVISION
            ]
            for role, data in roles.items()
        }

    return target.good is not None and volumes(target.revision) == volumes(target.good)


def delay(round_: Round, target: Target, warmup: Warmup) -> str:
    """What the target waits for: its groups, or before them the warm-up's Job and the routers."""
    before = [warmup.waits] if warmup.waits else []
    routers = {pod.name: pod.waits or pod.unscheduled for pod in round_.observed.router_pods}
    before += [f"{name}: {why[:300]}" for name, why in sorted(routers.items()) if why]
    return waits_for(target, round_.fleet, before[:3])


def _warmup(own: list[Group]) -> Evidence | None:
    for pod in (pod for group in own for pod in group.pods):
        if not pod.failed or pod.disrupted or pod.proof is None:
            continue
        if pod.proof.error not in ("", NO_PROOF):
            return Evidence("WarmupFailed", f"{pod.name}: {pod.proof.error}")
    return None


def _misconfigured(own: list[Group]) -> Evidence | None:
    for group in own:
        culprit = group.culprit
        if group.misconfigured and culprit is not None:
            return Evidence("ConfigurationError", f"{culprit.name}: {culprit.message}")
    return None


def _crashes(own: list[Group]) -> Evidence | None:
    for group in own:
        culprit, failures = group.culprit, group.next_failures()
        if culprit is not None and not culprit.disrupted and failures >= CRASHES:
            last_words = culprit.message.strip()[-500:]
            text = f"{culprit.name} {culprit.end}, {failures} failures in a row"
            return Evidence("CrashLoop", f"{text}: {last_words}")
    return None


def _faults(observed: Observed, target: Target) -> Evidence | None:
    revisions = {
        pod.name: pod.revision
        for pod in observed.pods
        if pod.revision != target.digest or pod.created >= target.since - SECONDS_APART
    }
    asked, failed = [0, 0], [0, 0]
    for view in observed.routers:
        for name, (requests, failures) in view.counts.items():
            if name in revisions:
                asked[revisions[name] == target.digest] += requests
                failed[revisions[name] == target.digest] += failures
    others = failed[False] / max(1, asked[False])
    if failed[True] < FAULTS or failed[True] / max(1, asked[True]) <= max(FAULT_RATE, 2 * others):
        return None
    text = f"{failed[True]} of {asked[True]} requests to it failed"
    return Evidence("ErrorRate", f"{text}, {failed[False]} of {asked[False]} to others")


def _late(
    round_: Round, target: Target, progress: RolloutProgress, warmup: Warmup
) -> Evidence | None:
    """Never ready in the time that it had."""
    if not progress.overdue(round_.now):
        return None
    return Evidence("ProgressDeadlineExceeded", delay(round_, target, warmup))
