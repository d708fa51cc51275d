"""What keeps pods from serving and does not end them: reported once it lasts. Pure.

Pods that end are `lifecycle`'s, refused writes the executor's. The pods here wait, and a round only
reports why: an image that is not there, a full cluster, a volume that cannot be
mounted, a router that crashes again and again, a dead container beside a living engine.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pds_operator import names
from pds_operator.decide.fleet import STUCK_SECONDS, Group, Phase
from pds_operator.decide.round import Round
from pds_operator.facts import clocks, containers
from pds_operator.facts.observed import Observed, Pod, RouterPod

LASTS_SECONDS = 30.0
"""A hiccup is shorter: a pod that waits for a node, for an image's second pull."""
UNPREPARED_SECONDS = 300.0
"""Volumes take a while to come to a node, and older kubelets say so until an image is pulled."""
RESTARTS = 2
"""Of a router, before it is reported: one may be its node's."""
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
ROOM = {
    "persistentvolumeclaim": "make the claim, or name another",
    "Insufficient": "make room, or ask for less",
    "taint": "tolerations of the podTemplate, or another node",
    "affinity": "nodeSelector and affinity of the podTemplate, or another node",
    "selector": "nodeSelector and affinity of the podTemplate, or another node",
}
"""Cures, by a word of the scheduler's."""
SAME = {"ErrImagePull": "ImagePullBackOff"}
"""The kubelet reports them by turns."""


@dataclass(frozen=True, slots=True)
class _Hindrance:
    """One pod's."""

    reason: str
    pod: str
    """Empty where there is none."""
    text: str
    cure: str
    due: float
    """When it has lasted."""


def look(round_: Round) -> None:
    """Report what has lasted, one of each kind with the number of the others."""
    observed, now = round_.observed, round_.now
    lasting: dict[tuple[str, str], list[_Hindrance]] = {}
    for found in _all(round_):
        if found.due > now:
            round_.wake_at(found.due)
        else:
            lasting.setdefault((found.reason, found.cure), []).append(found)
    for same in lasting.values():
        first = min(same, key=lambda found: found.pod)
        who = f"pod {first.pod}" if first.pod else "pods"
        more = f" (and {len(same) - 1} more pods)" if len(same) > 1 else ""
        cure = f"; {first.cure.replace('{pod}', first.pod)}" if first.cure else ""
        round_.report(first.reason, f"{who}{more}{first.text}{cure}")
    nodes = {pod.name: pod.node for pod in observed.pods}
    skew = clocks.skew(observed.states, observed.routers, nodes)
    if skew:
        round_.report("ClockSkew", skew)


def _all(round_: Round) -> Iterator[_Hindrance]:
    observed = round_.observed
    for group in round_.fleet:
        for pod in group.pods:
            yield from _engine(pod, round_.now)
        for pod in group.remnants:
            yield from _stuck(pod)
        if group.phase is Phase.STARTING and group.failures >= FAILURES:
            yield _again(group)
    for warmup in observed.warmups:
        if not warmup.error:
            yield from _waits(warmup.name, "", warmup.waits, warmup.unscheduled, warmup.created)
    for router in observed.router_pods:
        if not (router.ready or router.ends):
            yield from _router(router)
    yield from _deployment(observed)


def _engine(pod: Pod, now: float) -> Iterator[_Hindrance]:
    yield from _stuck(pod)
    if pod.crashing(now) and not pod.failed and pod.gone_by is None:
        text = f" is ready for moments only: {pod.crashes[:WORDS]}"
        cure = CURES["CrashLoopBackOff"]
        yield _Hindrance("CrashLoopBackOff", pod.name, text, cure, pod.created)
    if pod.failed or pod.gone_by is not None or pod.containers_ready:
        return
    since = max(pod.created, pod.unready or 0.0)
    yield from _waits(pod.name, pod.node, pod.waits, pod.unscheduled, since)
    if pod.unprepared is not None and not pod.waits:
        text = f" waits on node {pod.node} for its volumes, its network or its image"
        due = pod.unprepared + UNPREPARED_SECONDS
        yield _Hindrance("PodNotPrepared", pod.name, text, "kubectl describe pod {pod}", due)
    if pod.fallen:
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


def _waits(pod: str, node: str, waits: str, unscheduled: str, since: float) -> Iterator[_Hindrance]:
    due = since + LASTS_SECONDS
    if waits:
        reason = waits.partition(":")[0]
        on = f" on node {node}" if node else ""
        cure = CURES.get(reason, "kubectl describe pod {pod}")
        yield _Hindrance(SAME.get(reason, reason), pod, f"{on}: {waits[:WORDS]}", cure, due)
    elif unscheduled:
        cure = next((cure for word, cure in ROOM.items() if word in unscheduled), "")
        cure = cure or "kubectl describe pod {pod}"
        yield _Hindrance("Unschedulable", pod, f": {unscheduled[:WORDS]}", cure, due)


def _router(pod: RouterPod) -> Iterator[_Hindrance]:
    since = max(pod.created, pod.unready or 0.0)
    if pod.restarts < RESTARTS or not (pod.fell or pod.waits):
        yield from _waits(pod.name, "", pod.waits, pod.unscheduled, since)
        return
    said = (pod.fell or pod.waits)[:WORDS]
    text = f" of the router has restarted {pod.restarts} times: {said}"
    due = since + LASTS_SECONDS
    yield _Hindrance("RouterFailing", pod.name, text, CURES["CrashLoopBackOff"], due)


def _again(group: Group) -> _Hindrance:
    text = (
        f" starts {group.role} group {group.index} again, as attempt {group.attempt}, after "
        f"{group.failures} failures in a row"
    )
    cure = "Events of the PDServing tell their last words"
    return _Hindrance("GroupFailing", group.pods[0].name, text, cure, group.born)


def _deployment(observed: Observed) -> Iterator[_Hindrance]:
    """The API server takes no pods of the router."""
    for (kind, name), live in observed.objects.items():
        if kind != "Deployment" or live["metadata"].get("labels", {}).get(names.ROLE) != "router":
            continue
        for condition in (live.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "ReplicaFailure":
                since = containers.since(condition)
                # Each attempt has another name.
                said = re.sub('pods "[^"]*"', "pods", containers.words(condition.get("message")))
                text = f" of Deployment {name} are refused: {said[:WORDS]}"
                if since is not None:
                    due = since + LASTS_SECONDS
                    yield _Hindrance("RouterPodsRefused", "", text, "", due)
