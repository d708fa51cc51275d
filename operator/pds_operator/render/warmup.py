"""The Jobs that compile a revision, for these nodes or for a GPU that is not there. Pure.

A pod of a Job runs the warm-up of every pod of a group, of each role whose pods have the same
template, one after the other: it asks for no more than the largest of them. Jobs are made from the
stored revision alone, as pods are.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pds_operator import names
from pds_operator.render.owner import Owner

Object = dict[str, Any]

LEFT_OUT = (
    "containers",
    "initContainers",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",
    "volumes",
)
OF_GPU_NODES = ("affinity", "nodeSelector", "nodeName", "runtimeClassName", "resourceClaims")
"""By these pods come to nodes with GPUs, and to their GPUs."""
OURS = (f"{names.GROUP}/", "app.kubernetes.io/")
TIMEOUT_SECONDS = 1800.0
"""What an engine takes for cache.timeout_seconds where it is left out."""
START_SECONDS = 600
"""For a node, its volumes and the image, on top of what the steps may take."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A kind of GPU to compile for, where there is none."""

    target: str
    """As `sm_90`."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes that compile; empty: any."""


def jobs(owner: Owner, digest: str, data: Object, ahead: Ahead | None = None) -> list[Object]:
    """The Jobs of the revision `data`: one for each distinct template of its roles' pods.

    None where nothing is compiled, or each pod has a volume of its own.
    """
    alike: dict[str, list[str]] = {}
    for role in names.ROLES:
        if _shares(data.get("roles", {}).get(role)):
            alike.setdefault(_likeness(data["roles"][role], ahead), []).append(role)
    return [
        _job(owner, digest, data, roles, ahead, first=not number)
        for number, roles in enumerate(alike.values())
    ]


def _job(
    owner: Owner, digest: str, data: Object, roles: list[str], ahead: Ahead | None, *, first: bool
) -> Object:
    parts = [data["roles"][role] for role in roles]
    steps = [
        _step(owner, data, role, index, ahead)
        for role in roles
        for index in range(int(data["roles"][role]["podsPerGroup"]))
    ]
    spec = _pod_spec(parts[0], ahead)
    spec |= {
        "initContainers": steps[:-1],
        "containers": steps[-1:],
        "volumes": copy.deepcopy(parts[0]["template"]["spec"]["volumes"]),
    }
    target = ahead.target if ahead else ""
    name = names.warmup(owner.name, digest, target, "" if first else roles[0])
    metadata = owner.metadata(name, "warmup")
    theirs = _metadata(parts[0])
    labels = {**theirs["labels"], **metadata["labels"], names.REVISION: digest}
    labels |= {names.TARGET: target} if target else {}
    deadline = sum(_timeout(part) * int(part["podsPerGroup"]) for part in parts)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, **theirs, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": START_SECONDS + int(deadline),
            # A node that drains says nothing of the revision.
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
            },
            "template": {"metadata": {**theirs, "labels": dict(labels)}, "spec": spec},
        },
    }


def _likeness(part: Object, ahead: Ahead | None) -> str:
    """Equal for roles whose warm-ups one pod may run: it starts where any pod of theirs would.

    The counts of a resource may differ, as a pod asks for the largest.
    """
    volumes = {volume["name"]: volume for volume in part["template"]["spec"]["volumes"]}
    asked = _resources(_warmup(part["template"]["spec"]) or {}, ahead)
    devices = sorted({name for kind in asked.values() for name in kind if "/" in name})
    seen = [_pod_spec(part, ahead), _metadata(part), volumes, devices]
    return json.dumps(seen, sort_keys=True)


def _pod_spec(part: Object, ahead: Ahead | None) -> Object:
    """All of a pod's spec but its containers and volumes."""
    given = part["template"]["spec"]
    spec = {key: copy.deepcopy(value) for key, value in given.items() if key not in LEFT_OUT}
    affinity = spec.pop("affinity", {})
    affinity.pop("podAffinity", None)  # it speaks of groups
    spec |= {"affinity": affinity} if affinity else {}
    if ahead is not None:
        spec = {key: value for key, value in spec.items() if key not in OF_GPU_NODES}
        spec |= {"nodeSelector": dict(ahead.selector)} if ahead.selector else {}
    return spec


def _metadata(part: Object) -> Object:
    """The labels and annotations that a podTemplate gives: quotas, meshes and bills go by them."""
    given = part["template"].get("metadata") or {}
    labels = {k: v for k, v in (given.get("labels") or {}).items() if not k.startswith(OURS)}
    return {"labels": labels, "annotations": dict(given.get("annotations") or {})}


def _timeout(part: Object) -> float:
    cache = part["config"].get("cache") or {}
    return float(cache.get("timeout_seconds") or TIMEOUT_SECONDS)


def _shares(role: Object | None) -> bool:
    """Pods of the role warm up, into a volume that others see."""
    spec: Object = role["template"]["spec"] if role else {}
    caches = [volume for volume in spec.get("volumes", []) if volume["name"] == "cache"]
    return bool(_warmup(spec)) and any("emptyDir" not in volume for volume in caches)


def _warmup(spec: Object) -> Object | None:
    return next((c for c in spec.get("initContainers", []) if c["name"] == "warmup"), None)


def _resources(container: Object, ahead: Ahead | None) -> Object:
    """What a step asks for: without a device's resources (nvidia.com/gpu) where it is for none."""
    given: Object = copy.deepcopy(container.get("resources") or {})
    if ahead is None:
        return given
    kinds = {kind: given[kind] for kind in ("requests", "limits") if given.get(kind)}
    return {
        kind: left
        for kind, counts in kinds.items()
        if (left := {name: count for name, count in counts.items() if "/" not in name})
    }


def _step(owner: Owner, data: Object, role: str, index: int, ahead: Ahead | None) -> Object:
    container = copy.deepcopy(_warmup(data["roles"][role]["template"]["spec"]) or {})
    place = {
        "PDS_GROUP": f"{owner.name}-{role[0]}-warmup",
        "PDS_RANK_POD": str(index),
        "PDS_LEADER": "localhost",
        # Its own kernels are of no use to others: a volume that takes none fails no revision.
        "PDS_CACHE_ONLY_SHARED": "true",
        # Not in the file, which pods of the role read, too.
        **({"PDS_CACHE_TARGET": ahead.target} if ahead else {}),
    }
    env = [{"name": key, "value": value} for key, value in place.items()]
    return {
        **container,
        "name": f"{role}-{index}",
        "env": env + container.get("env", []),
        "resources": _resources(container, ahead),
    }
