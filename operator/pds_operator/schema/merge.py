"""A user's podTemplate merged into a rendered pod (operator.md). Pure.

Containers, env, volumes, mounts and ports merge by their key; tolerations and pull secrets are
appended; maps merge; everything else is replaced. What is ours is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from pds_operator import names
from pds_operator.errors import SpecError

Object = dict[str, Any]

KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists that merge by a key of their elements."""
APPENDED = frozenset({"tolerations", "imagePullSecrets"})
OUR_CONTAINERS = frozenset({"engine", "warmup", "router"})
OUR_CONTAINER_KEYS = frozenset(
    {"command", "args", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"}
)
OUR_POD_KEYS = frozenset(
    {"restartPolicy", "hostname", "subdomain", "readinessGates", "terminationGracePeriodSeconds"}
)


def merged(base: Object, override: Object, field: str) -> Object:
    """`base` (a pod's metadata and spec) with `override` on top; neither is changed.

    `field` is the path of the override in the object, for messages.

    Raises:
        SpecError: the override touches what is the operator's.
    """
    unknown = sorted(set(override) - {"metadata", "spec"})
    if unknown:
        raise SpecError(f"{field}.{unknown[0]}: a podTemplate has metadata and spec only")
    _refuse_ours(override, field)
    return _map(base, override, field)


def _refuse_ours(override: Object, field: str) -> None:
    metadata, spec = _object(override, "metadata", field), _object(override, "spec", field)
    odd = sorted(set(metadata) - {"labels", "annotations"})
    if odd:
        raise SpecError(f"{field}.metadata.{odd[0]}: only labels and annotations can be added")
    for kind in ("labels", "annotations"):
        for key in _object(metadata, kind, f"{field}.metadata"):
            if _is_ours(key):
                raise SpecError(f"{field}.metadata.{kind}.{key}: this one is the operator's")
    for key in sorted(OUR_POD_KEYS & set(spec)):
        raise SpecError(f"{field}.spec.{key}: this field is the operator's")
    for kind in ("containers", "initContainers"):
        for container in _list(spec, kind, f"{field}.spec"):
            _refuse_container(container, f"{field}.spec.{kind}")


def _refuse_container(container: Object, field: str) -> None:
    name = container.get("name")
    if name not in OUR_CONTAINERS:
        return
    for key in sorted(OUR_CONTAINER_KEYS & set(container)):
        raise SpecError(f"{field}[{name}].{key}: this field is the operator's")
    for port in _list(container, "ports", f"{field}[{name}]"):
        if port.get("containerPort") in (names.HTTP_PORT, names.METRICS_PORT):
            raise SpecError(
                f"{field}[{name}].ports: port {port['containerPort']} is the operator's"
            )
    for variable in _list(container, "env", f"{field}[{name}]"):
        if str(variable.get("name", "")).startswith("PDS_") and variable["name"] != "PDS_LOG_LEVEL":
            raise SpecError(f"{field}[{name}].env.{variable['name']}: PDS_* is the operator's")


def _is_ours(label: str) -> bool:
    return label.startswith((f"{names.GROUP}/", "app.kubernetes.io/"))


def _map(base: Object, override: Object, field: str) -> Object:
    result = dict(base)
    for name, value in override.items():
        if name not in base or value is None:
            result[name] = value
        elif isinstance(value, dict) and isinstance(base[name], dict):
            result[name] = _map(base[name], value, f"{field}.{name}")
        elif isinstance(value, list) and isinstance(base[name], list):
            result[name] = _list_merge(name, base[name], value, f"{field}.{name}")
        else:
            result[name] = value
    return {name: value for name, value in result.items() if value is not None}


def _list_merge(name: str, base: list[Any], override: list[Any], field: str) -> list[Any]:
    if name in APPENDED:
        return base + [item for item in override if item not in base]
    if name not in KEYS:
        return override
    key = KEYS[name]

    def value_of(item: Any) -> Any:
        return item.get(key) if isinstance(item, dict) else None

    for item in override:
        if value_of(item) is None:
            raise SpecError(f"{field}: every element needs {key}")
    changes = {value_of(item): item for item in override}
    known = {value_of(item) for item in base}
    kept = [
        _map(item, changes[value_of(item)], field) if value_of(item) in changes else item
        for item in base
    ]
    return kept + [item for item in override if value_of(item) not in known]


def _object(parent: Object, key: str, field: str) -> Object:
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise SpecError(f"{field}.{key}: must be a map")
    return value


def _list(parent: Object, key: str, field: str) -> list[Object]:
    value = parent.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SpecError(f"{field}.{key}: must be a list of maps")
    return value
