"""Engine pods: a template per role, rendered once into a revision, and the pods made from it.

What `render` returns is stored in the ControllerRevision, and every pod of that revision is made
from the stored data alone: no later operator, setting or default changes it (rollouts.md).
"""

import copy
import hashlib
import json
from typing import Any

from pds_operator import names, revision
from pds_operator.errors import SpecError
from pds_operator.render import config, gang
from pds_operator.render.owner import Owner
from pds_operator.render.volumes import CACHE_KEY_MOUNT, CONFIG_FILE, pod_volumes
from pds_operator.schema import PDServingSpec, RoleSpec
from pds_operator.schema.merge import merged
from pds_operator.settings import Settings

Object = dict[str, Any]

USER = 65532
DRAIN_SECONDS = 120
RELEASE_SECONDS = 30
"""Grace beyond the drain: what a rank needs to end once its leader has released it."""
HUNG_GRACE = 5
"""Of a container whose liveness probe fails. Routers have given up its requests after 15 s of
silence (`lost_after`), and the pod's own grace is for requests that can still end."""


def drain_seconds(spec: PDServingSpec) -> int:
    """How long a group may take to finish what it has."""
    given = spec.rollout.drain_seconds if spec.rollout else None
    return DRAIN_SECONDS if given is None else given


def render(
    raw: Object, spec: PDServingSpec, owner: Owner, settings: Settings, key: str = ""
) -> Object:
    """The data of a new revision: the spec it came from, a pod template and a file per role.

    `key` is the id of the control key that its pods mount; the first key has none.

    Raises:
        SpecError: a podTemplate touches what is ours, or asks for what the settings forbid.
    """
    digest = revision.digest(raw, key)
    return {
        **({"key": key} if key else {}),
        "spec": revision.affecting(raw),
        "roles": {
            role: {
                "podsPerGroup": shape.pods_per_group,
                "config": config.engine_config(spec, role),
                "template": _template(spec, role, shape, owner, digest, settings, key),
            }
            for role, shape in spec.roles.items()
        },
    }


def pods_per_group(data: Object, role: str) -> int:
    """Pods that a group of `role` has in the revision `data`."""
    return int(data["roles"][role]["podsPerGroup"])


def controller_revision(owner: Owner, digest: str, number: int, data: Object) -> Object:
    """The stored form of a revision."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": owner.metadata(names.revision(owner.name, digest)),
        "revision": number,
        "data": data,
    }


def config_map(owner: Owner, digest: str, data: Object) -> Object:
    """`<pds>-<revision>`: a configuration file per role."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.metadata(names.revision(owner.name, digest)),
        "immutable": True,
        "data": {
            f"{role}.json": json.dumps(rendered["config"], indent=2, sort_keys=True) + "\n"
            for role, rendered in data["roles"].items()
        },
    }


def pod(
    owner: Owner, data: Object, role: str, group: int, attempt: int, rank_pod: int, failures: int
) -> Object:
    """One pod of a group, from the revision's stored template."""
    template = copy.deepcopy(data["roles"][role]["template"])
    name = names.pod_name(owner.name, role, group, attempt, rank_pod)
    leader = names.pod_name(owner.name, role, group, attempt, 0)
    metadata, spec = template["metadata"], template["spec"]
    metadata |= {
        "name": name,
        "namespace": owner.namespace,
        "ownerReferences": [owner.reference()],
    }
    metadata["labels"] |= {
        names.GROUP_INDEX: str(group),
        names.ATTEMPT: str(attempt),
        names.RANK_POD: str(rank_pod),
    }
    if failures:
        metadata.setdefault("annotations", {})[names.FAILURES] = str(failures)
    together = gang.of(data, role)
    if together:
        gang.mark(metadata, together, names.group_name(owner.name, role, group, attempt))
    spec |= {"hostname": name, "subdomain": names.ranks_service(owner.name)}
    if rank_pod == 0 and pods_per_group(data, role) > 1:
        metadata["labels"][names.RENDEZVOUS] = "true"
    if rank_pod == 0:
        spec["readinessGates"] = [{"conditionType": names.ROUTABLE}]
    place = {
        "PDS_GROUP": names.group_name(owner.name, role, group, attempt),
        "PDS_RANK_POD": str(rank_pod),
        "PDS_LEADER": f"{leader}.{names.ranks_service(owner.name)}.{owner.namespace}.svc",
    }
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        if container["name"] in ("engine", "warmup"):
            given = [{"name": key, "value": value} for key, value in place.items()]
            container["env"] = given + container.get("env", [])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _template(
    spec: PDServingSpec,
    role: str,
    shape: RoleSpec,
    owner: Owner,
    digest: str,
    settings: Settings,
    key: str,
) -> Object:
    labels = names.common_labels(owner.name, role)
    base: Object = {
        "metadata": {
            "labels": {**labels, names.REVISION: digest, names.KV: kv_label(spec)},
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"},
        },
        "spec": _pod_spec(
            spec,
            role,
            shape,
            owner,
            settings,
            pod_volumes(spec, role, owner, digest, settings, key),
        ),
    }
    if key:
        base["metadata"]["labels"][names.KEY] = key
    if shape.pod_template is None:
        return base
    field = f"spec.{role}.podTemplate"
    if not settings.pod_defaults.allow_host_path:
        refuse_host_paths(shape.pod_template, field)
    return merged(base, shape.pod_template, field)


def refuse_host_paths(template: Object, field: str) -> None:
    """Raises SpecError when a user's template mounts a path of the node."""
    volumes = (template.get("spec") or {}).get("volumes") or []
    for volume in volumes:
        if isinstance(volume, dict) and "hostPath" in volume:
            raise SpecError(
                f"{field}.spec.volumes[{volume.get('name')}].hostPath: this operator does not "
                "allow paths of the node (chart value podDefaults.allowHostPath)"
            )


def kv_label(spec: PDServingSpec) -> str:
    """What the KV format follows from, as far as the spec says: for people, not for pairing."""
    kv = {role: shape.engine for role, shape in spec.roles.items() if shape.engine}
    own = next(iter(kv.values()), None)
    engine = spec.engine

    def setting(field: str) -> Any:
        return getattr(own, field, None) or getattr(engine, field, None)

    source = spec.model.source.model_dump(exclude_none=True)
    parts = [source, spec.model.dtype, setting("kv_dtype"), setting("page_size")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def _pod_spec(
    spec: PDServingSpec,
    role: str,
    shape: RoleSpec,
    owner: Owner,
    settings: Settings,
    mounted: tuple[list[Object], list[Object]],
) -> Object:
    defaults, scheduling = settings.pod_defaults, spec.scheduling
    volumes, mounts = mounted
    engine = _container(spec, shape, settings, mounts) | {
        "ports": [
            {"name": "http", "containerPort": names.HTTP_PORT},
            {"name": "metrics", "containerPort": names.METRICS_PORT},
        ],
        **_probes(),
    }
    command = [f"{_prefix(defaults.command_prefix)}pds-engine"]
    result: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": drain_seconds(spec) + RELEASE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "tolerations": _tolerations(),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {names.NAME: owner.name, names.ROLE: role}},
            }
        ],
        "containers": [
            {"name": "engine", "command": [*command, "serve", "--config", CONFIG_FILE], **engine}
        ],
        "volumes": volumes,
    }
    if config.warms_up(spec):
        warmup = _container(spec, shape, settings, mounts)
        result["initContainers"] = [
            {"name": "warmup", "command": [*command, "warmup", "--config", CONFIG_FILE], **warmup}
        ]
    if spec.image_pull_secrets:
        result["imagePullSecrets"] = [{"name": item.name} for item in spec.image_pull_secrets]
    if spec.service_account_name:
        result["serviceAccountName"] = spec.service_account_name
    if scheduling and (name := scheduling.scheduler_name or _scheduler(scheduling.gang)):
        result["schedulerName"] = name
    if scheduling and scheduling.priority_class_name:
        result["priorityClassName"] = scheduling.priority_class_name
    if scheduling and scheduling.group_topology_key:
        result["affinity"] = _together(owner, role, scheduling.group_topology_key)
    return result


def _scheduler(kind: str | None) -> str:
    return gang.KINDS[kind].scheduler if kind in gang.KINDS else ""


def _container(
    spec: PDServingSpec, shape: RoleSpec, settings: Settings, mounts: list[Object]
) -> Object:
    """What the engine and its warm-up share: an init container needs its own GPU request."""
    resources = shape.resources.model_dump(exclude_none=True) if shape.resources else {}
    return {
        "image": spec.image or settings.image.reference,
        "imagePullPolicy": spec.image_pull_policy or settings.image.pull_policy,
        "env": with_defaults(_env(spec), settings),
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def with_defaults(env: list[Object], settings: Settings) -> list[Object]:
    """`env` with the site's variables, which win: two of one name would be refused."""
    site = settings.pod_defaults.env
    theirs = {item["name"] for item in site}
    return [item for item in env if item["name"] not in theirs] + site


def _env(spec: PDServingSpec) -> list[Object]:
    def field(name: str, path: str) -> Object:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return [
        field("PDS_POD_NAME", "metadata.name"),
        field("PDS_NAMESPACE", "metadata.namespace"),
        field("PDS_INCARNATION", "metadata.uid"),
        field("PDS_POD_IP", "status.podIP"),
        field("PDS_REVISION", f"metadata.labels['{names.REVISION}']"),
        {"name": "HOME", "value": "/tmp"},
        # Not in the configuration: an engine of the release before would refuse the unknown key.
        *([{"name": "PDS_CACHE_KEY_DIR", "value": CACHE_KEY_MOUNT}] if spec.compile_cache else []),
    ]


def _probes() -> Object:
    def get(path: str, **timing: int) -> Object:
        return {"httpGet": {"path": path, "port": names.HTTP_PORT}, **timing}

    return {
        "startupProbe": get("/healthz", periodSeconds=1, timeoutSeconds=2, failureThreshold=1800),
        "readinessProbe": get("/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=2),
        "livenessProbe": {
            **get("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
            "terminationGracePeriodSeconds": HUNG_GRACE,
        },
    }


def _tolerations() -> list[Object]:
    return [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 30,
        }
        for taint in ("not-ready", "unreachable")
    ]


def _together(owner: Owner, role: str, topology_key: str) -> Object:
    term = {
        "topologyKey": topology_key,
        "labelSelector": {"matchLabels": {names.NAME: owner.name, names.ROLE: role}},
        "matchLabelKeys": [names.GROUP_INDEX, names.ATTEMPT],
    }
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def pod_security() -> Object:
    """Of all pods we make."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    """Of all containers we make."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _prefix(folder: str) -> str:
    return f"{folder.rstrip('/')}/" if folder else ""
