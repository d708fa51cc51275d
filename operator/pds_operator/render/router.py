"""The router: its configuration, Deployment, endpoint Service and the rights it runs with. Pure."""

import hashlib
import json
from typing import Any

from pds_operator import names
from pds_operator.render import config
from pds_operator.render.engine import (
    container_security,
    drain_seconds,
    pod_security,
    refuse_host_paths,
    with_defaults,
)
from pds_operator.render.owner import Owner
from pds_operator.schema import PDServingSpec, RouterSpec
from pds_operator.schema.merge import merged
from pds_operator.settings import Settings

Object = dict[str, Any]

CONFIG_FILE = "/etc/pds/router.json"
AUTH_MOUNT = "/etc/pds/auth"
LINGER_SECONDS = 5
"""A router accepts so long after SIGTERM: endpoints lag behind (router.md)."""
DEFAULT_REPLICAS = 1


def router_spec(spec: PDServingSpec) -> RouterSpec:
    """What the spec says of the router; nothing, where it says nothing."""
    return spec.router or RouterSpec()


def service_port(spec: PDServingSpec) -> int:
    """The endpoint's port."""
    service = router_spec(spec).service
    return (service.port if service else None) or names.HTTP_PORT


def endpoint(owner: Owner, spec: PDServingSpec) -> str:
    """The URL at which clients inside the cluster reach this object."""
    return f"http://{owner.name}.{owner.namespace}.svc:{service_port(spec)}"


def objects(owner: Owner, spec: PDServingSpec, settings: Settings) -> list[Object]:
    """Everything of the router, in the order in which it is made."""
    configuration = _config_map(owner, spec)
    return [
        _service_account(owner),
        _role_binding(owner, settings),
        configuration,
        _service(owner, spec),
        _deployment(owner, spec, settings, configuration),
    ]


def _service_account(owner: Owner) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": owner.metadata(names.router(owner.name), "router"),
        "automountServiceAccountToken": False,
    }


def _role_binding(owner: Owner, settings: Settings) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": owner.metadata(names.router(owner.name), "router"),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": settings.router_cluster_role,
        },
        "subjects": [
            {
                "kind": "ServiceAccount",
                "name": names.router(owner.name),
                "namespace": owner.namespace,
            }
        ],
    }


def _config_map(owner: Owner, spec: PDServingSpec) -> Object:
    router = router_spec(spec)
    tree: Object = {
        "pdserving": owner.name,
        "namespace": owner.namespace,
        "model": spec.model.name,
        "host": "0.0.0.0",
        "port": names.HTTP_PORT,
        "metrics_port": names.METRICS_PORT,
        "keys_dir": config.KEYS_MOUNT,
        "drain_seconds": drain_seconds(spec),
        "linger_seconds": LINGER_SECONDS,
    }
    if router.policy:
        tree["policy"] = router.policy
    if router.auth:
        tree["auth"] = {"secret_dir": AUTH_MOUNT}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.metadata(names.router(owner.name), "router"),
        "data": {"router.json": json.dumps(tree, indent=2, sort_keys=True) + "\n"},
    }


def _service(owner: Owner, spec: PDServingSpec) -> Object:
    service = router_spec(spec).service
    metadata = owner.metadata(owner.name, "router")
    if service and service.annotations:
        metadata["annotations"] = dict(service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": (service.type if service else None) or "ClusterIP",
            "selector": {names.NAME: owner.name, names.ROLE: "router"},
            "ports": [
                {
                    "name": "http",
                    "port": service_port(spec),
                    "targetPort": names.HTTP_PORT,
                    "protocol": "TCP",
                }
            ],
        },
    }


def _deployment(
    owner: Owner, spec: PDServingSpec, settings: Settings, configuration: Object
) -> Object:
    router = router_spec(spec)
    labels = names.common_labels(owner.name, "router")
    digest = hashlib.sha256(configuration["data"]["router.json"].encode()).hexdigest()[:16]
    template: Object = {
        "metadata": {
            "labels": labels,
            "annotations": {f"{names.GROUP}/config": digest},
        },
        "spec": _pod_spec(owner, spec, settings),
    }
    if router.pod_template is not None:
        field = "spec.router.podTemplate"
        if not settings.pod_defaults.allow_host_path:
            refuse_host_paths(router.pod_template, field)
        template = merged(template, router.pod_template, field)
    result: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owner.metadata(names.router(owner.name), "router"),
        "spec": {
            "selector": {"matchLabels": {names.NAME: owner.name, names.ROLE: "router"}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": template,
        },
    }
    if router.replicas is not None:
        # Left out it is whoever scales the Deployment's; an apply that names it would be refused.
        result["spec"]["replicas"] = router.replicas
    return result


def _pod_spec(owner: Owner, spec: PDServingSpec, settings: Settings) -> Object:
    router, defaults = router_spec(spec), settings.pod_defaults
    prefix = f"{defaults.command_prefix.rstrip('/')}/" if defaults.command_prefix else ""
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": names.router(owner.name)}},
        {
            "name": "keys",
            # A folder, so that the kubelet brings new keys in: a rotation starts no router anew.
            "secret": {"secretName": names.keyring(owner.name), "defaultMode": 0o440},
        },
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[Object] = [
        {
            "name": "config",
            "mountPath": CONFIG_FILE,
            "subPath": "router.json",
            "readOnly": True,
        },
        {"name": "keys", "mountPath": config.KEYS_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if router.auth:
        secret = {"secretName": router.auth.secret_name, "defaultMode": 0o440}
        volumes.append({"name": "auth", "secret": secret})
        mounts.append({"name": "auth", "mountPath": AUTH_MOUNT, "readOnly": True})
    result: Object = {
        "serviceAccountName": names.router(owner.name),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        # A stream, and one behind it on the same connection (pds_engine.router.serve).
        "terminationGracePeriodSeconds": 2 * drain_seconds(spec) + LINGER_SECONDS + 5,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "router",
                "image": router.image or spec.image or settings.image.reference,
                "imagePullPolicy": spec.image_pull_policy or settings.image.pull_policy,
                "command": [f"{prefix}pds-router", "serve", "--config", CONFIG_FILE],
                "env": with_defaults([{"name": "HOME", "value": "/tmp"}], settings),
                "ports": [
                    {"name": "http", "containerPort": names.HTTP_PORT},
                    {"name": "metrics", "containerPort": names.METRICS_PORT},
                ],
                "resources": router.resources.model_dump(exclude_none=True)
                if router.resources
                else {},
                "startupProbe": _probe("/healthz", periodSeconds=1, failureThreshold=60),
                # One that hangs is unready within 5 s.
                "readinessProbe": _probe("/readyz", periodSeconds=1, failureThreshold=2),
                "livenessProbe": _liveness(),
                "volumeMounts": mounts + defaults.volume_mounts,
                "securityContext": container_security(),
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "volumes": volumes + defaults.volumes,
    }
    if spec.image_pull_secrets:
        result["imagePullSecrets"] = [{"name": item.name} for item in spec.image_pull_secrets]
    return result


def _liveness() -> Object:
    """A hung router is dead within 16 s, and made again at once.

    /healthz is answered by its event loop, so that a busy one answers late; three answers in a row
    that take 3 s each are a loop that has stopped. The pod's own grace is for streams to end by
    themselves, which those of a hung router do not.
    """
    return {
        **_probe("/healthz", periodSeconds=4, failureThreshold=3),
        "timeoutSeconds": 3,
        "terminationGracePeriodSeconds": 1,
    }


def _probe(path: str, **timing: int) -> Object:
    return {
        "httpGet": {"path": path, "port": names.HTTP_PORT},
        "timeoutSeconds": 2,
        **timing,
    }
