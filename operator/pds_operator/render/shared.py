"""What the roles share: the ranks' Service, the cache claim, budgets, network policies. Pure."""

from collections.abc import Mapping
from typing import Any

from pds_operator import names
from pds_operator.render.owner import Owner
from pds_operator.schema import PDServingSpec
from pds_operator.settings import Settings

Object = dict[str, Any]


def ranks_service(owner: Owner) -> Object:
    """Headless, with addresses before readiness: ranks must meet before they are Ready.

    It selects only the pods that others look for: with each further pod the endpoint controller
    would write all addresses anew.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(names.ranks_service(owner.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.NAME: owner.name, names.RENDEZVOUS: "true"},
            "ports": [
                {
                    "name": "http",
                    "port": names.HTTP_PORT,
                    "targetPort": names.HTTP_PORT,
                    "protocol": "TCP",
                }
            ],
        },
    }


def cache_claim(owner: Owner, spec: PDServingSpec) -> Object | None:
    """The compile cache's claim, where the spec asks the operator for one."""
    volume = spec.compile_cache.volume if spec.compile_cache else None
    if volume is None or volume.claim is None:
        return None
    claim = volume.claim
    metadata = owner.metadata(names.cache_claim(owner.name))
    if volume.retain:
        # Without an owner nothing collects it; the labels say whose it is.
        del metadata["ownerReferences"]
    result: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": list(claim.access_modes or ["ReadWriteMany"]),
            "resources": {"requests": {"storage": claim.size}},
        },
    }
    if claim.storage_class_name is not None:
        result["spec"]["storageClassName"] = claim.storage_class_name
    return result


def disruption_budget(owner: Owner, role: str, pods: int) -> Object:
    """At most one pod of `role`'s wanted `pods` may be evicted at a time.

    An integer minAvailable: for pods of a kind without /scale, percentages and maxUnavailable end
    in SyncFailed. Draining pods are not counted: selectors see labels only.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owner.metadata(f"{owner.name}-{role}", role),
        "spec": {
            "minAvailable": max(0, pods - 1),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {
                "matchLabels": {names.NAME: owner.name, names.ROLE: role},
                "matchExpressions": [{"key": names.DRAINING, "operator": "DoesNotExist"}],
            },
        },
    }


def network_policies(owner: Owner, settings: Settings) -> list[Object]:
    """Who may reach the engine pods and the router."""
    return [_engine_policy(owner, settings), _router_policy(owner, settings)]


def _engine_policy(owner: Owner, settings: Settings) -> Object:
    http = [{"protocol": "TCP", "port": names.HTTP_PORT}]
    rules: list[Object] = [
        # gloo, NCCL and UCX listen on ephemeral ports: all ports among the engine's own pods.
        {"from": [{"podSelector": _engines(owner)}]},
        {"from": [{"podSelector": _router(owner)}, _operator(settings)], "ports": http},
        *_metrics(settings),
    ]
    return _policy(owner, f"{owner.name}-engine", "shared", _engines(owner), rules)


def _router_policy(owner: Owner, settings: Settings) -> Object:
    rules: list[Object] = [
        {"ports": [{"protocol": "TCP", "port": names.HTTP_PORT}]},
        *_metrics(settings),
    ]
    return _policy(owner, names.router(owner.name), "router", _router(owner), rules)


def _policy(owner: Owner, name: str, role: str, pods: Object, rules: list[Object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(name, role),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": rules},
    }


def _metrics(settings: Settings) -> list[Object]:
    if not settings.metrics_from:
        return []
    port = [{"protocol": "TCP", "port": names.METRICS_PORT}]
    return [{"from": list(settings.metrics_from), "ports": port}]


def _operator(settings: Settings) -> Object:
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
    }


def _engines(owner: Owner) -> Object:
    return {
        "matchLabels": {names.NAME: owner.name},
        "matchExpressions": [
            {"key": names.ROLE, "operator": "In", "values": [*names.ROLES, "warmup"]}
        ],
    }


def _router(owner: Owner) -> Object:
    return {"matchLabels": {names.NAME: owner.name, names.ROLE: "router"}}


def objects(
    owner: Owner, spec: PDServingSpec, settings: Settings, pods: Mapping[str, int]
) -> list[Object]:
    """All of it; `pods` is how many pods each role is to have."""
    claim = cache_claim(owner, spec)
    result = [ranks_service(owner)]
    if claim is not None:
        result.append(claim)
    if settings.pod_disruption_budgets:
        result += [disruption_budget(owner, role, count) for role, count in pods.items()]
    if settings.network_policies:
        result += network_policies(owner, settings)
    return result
