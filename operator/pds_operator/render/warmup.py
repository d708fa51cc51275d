"""The Job that compiles a revision before any pod of it surges (rollouts.md). Pure.

One pod runs the warm-up of every pod of a group of each role, one after the other, so that it asks
for no more than the largest of them. It is made from the stored revision alone, as pods are.
"""

import copy
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


def job(owner: Owner, digest: str, data: Object) -> Object | None:
    """The Job of the revision `data`; None where nothing is compiled, or each pod has its own."""
    roles = [role for role in names.ROLES if _shares(data.get("roles", {}).get(role))]
    if not roles:
        return None
    steps = [
        _step(owner, data, role, index)
        for role in roles
        for index in range(int(data["roles"][role]["podsPerGroup"]))
    ]
    template = data["roles"][roles[0]]["template"]
    spec = {k: copy.deepcopy(v) for k, v in template["spec"].items() if k not in LEFT_OUT}
    spec.get("affinity", {}).pop("podAffinity", None)  # it speaks of groups
    volumes = {v["name"]: v for r in roles for v in data["roles"][r]["template"]["spec"]["volumes"]}
    spec |= {
        "initContainers": steps[:-1],
        "containers": steps[-1:],
        "volumes": copy.deepcopy(list(volumes.values())),
    }
    metadata = owner.metadata(names.warmup(owner.name, digest), "warmup")
    metadata["labels"][names.REVISION] = digest
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            # A node that drains says nothing of the revision.
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
            },
            "template": {"metadata": {"labels": dict(metadata["labels"])}, "spec": spec},
        },
    }


def _shares(role: Object | None) -> bool:
    """Pods of the role warm up, into a volume that others see."""
    spec: Object = role["template"]["spec"] if role else {}
    caches = [volume for volume in spec.get("volumes", []) if volume["name"] == "cache"]
    return bool(_warmup(spec)) and any("emptyDir" not in volume for volume in caches)


def _warmup(spec: Object) -> Object | None:
    return next((c for c in spec.get("initContainers", []) if c["name"] == "warmup"), None)


def _step(owner: Owner, data: Object, role: str, index: int) -> Object:
    container = copy.deepcopy(_warmup(data["roles"][role]["template"]["spec"]) or {})
    place = {
        "PDS_GROUP": f"{owner.name}-{role[0]}-warmup",
        "PDS_RANK_POD": str(index),
        "PDS_LEADER": "localhost",
        # Its own kernels are of no use to others: a volume that takes none fails no revision.
        "PDS_CACHE_ONLY_SHARED": "true",
    }
    env = [{"name": key, "value": value} for key, value in place.items()]
    return {**container, "name": f"{role}-{index}", "env": env + container.get("env", [])}
