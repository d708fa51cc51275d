"""Gangs: a PodGroup for each attempt of a group of several pods, so that all of its pods are
scheduled or none. Pure.

    volcano        scheduling.volcano.sh, the pods' annotation scheduling.k8s.io/group-name
    coscheduling   scheduling.x-k8s.io (scheduler-plugins), the pods' label
    kai            scheduling.run.ai, the pods' annotation; its own grouper must keep out

A queue is named as these schedulers' users name it, by a label or annotation in podTemplate.
"""

from dataclasses import dataclass
from typing import Any

from pds_operator import names
from pds_operator.render.owner import Owner

Object = dict[str, Any]

KIND = "PodGroup"
_KAI_QUEUE = "kai.scheduler/queue"
_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"


@dataclass(frozen=True, slots=True)
class Kind:
    """How one scheduler takes gangs."""

    api_version: str
    scheduler: str
    """What spec.scheduling.schedulerName is by default."""
    annotation: str = ""
    label: str = ""
    queue: str = ""
    """The label or annotation of pods that names their queue, which spec.queue repeats."""
    default_queue: str = ""
    more: tuple[tuple[str, str], ...] = ()
    """Annotations that pods need besides."""


KINDS = {
    "volcano": Kind(
        "scheduling.volcano.sh/v1beta1",
        "volcano",
        annotation="scheduling.k8s.io/group-name",
        queue=_VOLCANO_QUEUE,
    ),
    "coscheduling": Kind(
        "scheduling.x-k8s.io/v1alpha1",
        "scheduler-plugins-scheduler",
        label="scheduling.x-k8s.io/pod-group",
    ),
    "kai": Kind(
        "scheduling.run.ai/v2alpha2",
        "kai-scheduler",
        annotation="pod-group-name",
        queue=_KAI_QUEUE,
        default_queue="default-queue",
        more=(("kai.scheduler/skip-podgrouper", "true"),),
    ),
}


def of(data: Object, role: str) -> str:
    """The gang kind of `role` in the revision `data`; empty for pods that stand alone."""
    given = (data["spec"].get("scheduling") or {}).get("gang", "none")
    alone = data["roles"][role]["podsPerGroup"] == 1
    return "" if given == "none" or alone else str(given)


def mark(metadata: Object, gang: str, group: str) -> None:
    """Make a pod one of the gang of `group`."""
    kind = KINDS[gang]
    annotations = metadata.setdefault("annotations", {})
    annotations[names.GANG] = gang
    annotations |= dict(kind.more)
    if kind.annotation:
        annotations[kind.annotation] = group
    if kind.label:
        metadata["labels"][kind.label] = group


def pod_group(owner: Owner, data: Object, role: str, group: str) -> Object:
    """The PodGroup of `group`; its pods must be there as a whole."""
    kind, rendered = KINDS[of(data, role)], data["roles"][role]
    template = rendered["template"]
    spec: Object = {"minMember": rendered["podsPerGroup"]}
    given = {**(template["metadata"].get("annotations") or {}), **template["metadata"]["labels"]}
    queue = given.get(kind.queue, kind.default_queue)
    if queue:
        spec["queue"] = queue
    priority = template["spec"].get("priorityClassName")
    if priority and not kind.label:  # scheduler-plugins takes it from the pods
        spec["priorityClassName"] = priority
    metadata = owner.metadata(group, role)
    if kind.queue == _KAI_QUEUE:
        metadata["labels"][_KAI_QUEUE] = queue
    return {"apiVersion": kind.api_version, "kind": KIND, "metadata": metadata, "spec": spec}
