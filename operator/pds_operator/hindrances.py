"""What keeps pods from serving and does not end them: told once it lasts. Pure.

Pods that end are `lifecycle`'s, refused writes the executor's. These here wait, and nothing follows
from that but a word to people: an image that is not there, a full cluster, a volume that cannot be
mounted, a router that crashes again and again, a dead container beside a living engine.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pds_operator import clocks, names
from pds_operator.actions import Problem, Round
from pds_operator.fleet import STUCK_SECONDS, Group, Phase
from pds_operator.observed import Observed, Pod, RouterPod

LASTS_SECONDS = 30.0
"""A hiccup is shorter: a pod that waits for a node, for an image's second pull."""
UNPREPARED_SECONDS = 90.0
"""Volumes take a while to come to a node."""
RESTARTS = 2
"""Of a router, before it is told: one may be its node's."""
FAILURES = 2
"""In a row, of a group that starts again."""
WORDS = 400
"""Characters of what a kubelet, a scheduler or a container says."""

IMAGE = "put the image right in the spec, or give imagePullSecrets that may pull it"
CURES = {
    "ErrImagePull": IMAGE,
    "ImagePullBackOff": IMAGE,
    "InvalidImageName": IMAGE,
    "ErrImageNeverPull": "load the image on the node, or let imagePullPolicy pull it",
    "CreateContainerConfigError": "make the ConfigMap or Secret that it names, or name another",
    "CrashLoopBackOff": "kubectl logs {pod} --all-containers --previous",
}
SAME = {"ErrImagePull": "ImagePullBackOff"}
"""The kubelet tells them by turns."""


@dataclass(frozen=True, slots=True)
class _Hindrance:
    """One pod's."""

    reason: str
    pod: str
    text: str
    cure: str
    due: float
    """When it has lasted."""


def look(round_: Round, observed: Observed, fleet: Iterable[Group], now: float) -> None:
    """Tell what has lasted, one of each kind with the number of the others."""
    told: dict[tuple[str, str], list[_Hindrance]] = {}
    for found in _all(observed, fleet, now):
        if found.due > now:
            round_.wake_at(found.due)
        else:
            told.setdefault((found.reason, found.cure), []).append(found)
    for same in told.values():
        first = min(same, key=lambda found: found.pod)
        more = f" (and {len(same) - 1} more pods)" if len(same) > 1 else ""
        cure = f"; {first.cure.format(pod=first.pod)}" if first.cure else ""
        round_.problems.append(Problem(first.reason, f"pod {first.pod}{more}{first.text}{cure}"))
    refused = _deployment(observed)
    if refused:
        round_.problems.append(Problem("RouterPodsRefused", refused))
    nodes = {pod.name: pod.node for pod in observed.pods}
    skew = clocks.skew(observed.states, observed.routers, nodes)
    if skew:
        round_.problems.append(Problem("ClockSkew", skew))


def _all(observed: Observed, fleet: Iterable[Group], now: float) -> Iterator[_Hindrance]:
    for group in fleet:
        for pod in group.pods:
            yield from _engine(pod)
        for pod in group.remnants:
            yield from _stuck(pod)
        if group.phase is Phase.STARTING and group.failures >= FAILURES:
            yield _again(group)
    for warmup in observed.warmups:
        if not warmup.error:
            yield from _waits(warmup.name, "", warmup.waits, warmup.unscheduled, warmup.created)
    for router in observed.router_pods:
        yield from _router(router)


def _engine(pod: Pod) -> Iterator[_Hindrance]:
    yield from _stuck(pod)
    if pod.failed or pod.gone_by is not None:
        return
    yield from _waits(pod.name, pod.node, pod.waits, pod.unscheduled, pod.created)
    if pod.unprepared is not None and not pod.waits:
        text = f" waits on node {pod.node} for its volumes or its network"
        due = pod.unprepared + UNPREPARED_SECONDS
        yield _Hindrance("PodNotPrepared", pod.name, text, "kubectl describe pod {pod}", due)
    if pod.fallen and not pod.containers_ready:
        text = f" is not ready: {pod.fallen[:WORDS]}, and its pod restarts nothing"
        cure = (
            "kubectl delete pod {pod}; a container that may end belongs into the podTemplate's "
            "initContainers, with restartPolicy: Always"
        )
        yield _Hindrance("SidecarEnded", pod.name, text, cure, pod.created)


def _stuck(pod: Pod) -> Iterator[_Hindrance]:
    """A pod that is being deleted, and whose kubelet does not let it go."""
    if pod.gone_by is not None:
        on = f", on node {pod.node}," if pod.node else ""
        text = f"{on} should have ended and has not: its node is dead or cut off"
        cure = "kubectl delete pod {pod} --force, once nothing of it can run any more"
        yield _Hindrance("PodStuck", pod.name, text, cure, pod.gone_by + STUCK_SECONDS)


def _waits(
    pod: str, node: str, waits: str, unscheduled: str, created: float
) -> Iterator[_Hindrance]:
    due = created + LASTS_SECONDS
    if waits:
        reason = waits.partition(":")[0]
        on = f" on node {node}" if node else ""
        cure = CURES.get(reason, "kubectl describe pod {pod}")
        yield _Hindrance(SAME.get(reason, reason), pod, f"{on}: {waits[:WORDS]}", cure, due)
    elif unscheduled:
        cure = "make room, or ask for less"
        yield _Hindrance("Unschedulable", pod, f": {unscheduled[:WORDS]}", cure, due)


def _router(pod: RouterPod) -> Iterator[_Hindrance]:
    if pod.ready:
        return
    if pod.restarts >= RESTARTS and (pod.fell or pod.waits):
        text = (
            f" of the router has restarted {pod.restarts} times: {(pod.fell or pod.waits)[:WORDS]}"
        )
        cure = CURES["CrashLoopBackOff"]
        yield _Hindrance("RouterFailing", pod.name, text, cure, pod.created)
        return
    yield from _waits(pod.name, "", pod.waits, pod.unscheduled, pod.created)


def _again(group: Group) -> _Hindrance:
    text = (
        f" starts {group.role} group {group.index} again, as attempt {group.attempt}, after "
        f"{group.failures} failures in a row"
    )
    cure = "Events of the PDServing tell their last words"
    return _Hindrance("GroupFailing", group.pods[0].name, text, cure, group.born)


def _deployment(observed: Observed) -> str:
    """Why the API server takes no pods of the router."""
    for (kind, name), live in observed.objects.items():
        if kind != "Deployment" or live["metadata"].get("labels", {}).get(names.ROLE) != "router":
            continue
        for condition in (live.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
                said = str(condition.get("message") or condition.get("reason"))
                return f"Deployment {name}: its pods are refused: {said[:WORDS]}"
    return ""
