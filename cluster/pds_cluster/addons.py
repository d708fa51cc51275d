"""What runs on the cluster from the start: DNS, the kubelet's clients' role, the storage class."""

import hashlib
import json
from typing import Any

from pds_cluster import kubectl
from pds_cluster.certs import APISERVER_USER
from pds_cluster.settings import DNS_IMAGE, STORAGE_CLASS, UID, Settings
from pds_cluster.shell import wait_for

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"
DNS_DEPLOYMENT = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"


def objects(settings: Settings, upstream: bool) -> list[Object]:
    """`upstream`: whether the host knows a name server that pods can reach."""
    role = "system:kubelet-api-admin"
    return [
        _binding("pds:apiserver-to-kubelet", role, {"kind": "User", "name": APISERVER_USER}),
        _storage_class(),
        *_dns(settings, upstream),
    ]


def _binding(name: str, role: str, subject: Object) -> Object:
    group = {"apiGroup": RBAC} if subject["kind"] == "User" else {}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{**group, **subject}],
    }


def _storage_class() -> Object:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def corefile(upstream: bool) -> str:
    forward = "forward . /etc/resolv.conf" if upstream else ""
    return f""".:5353 {{
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    {forward}
    cache 5
    loop
    reload
    loadbalance
}}
"""


def _dns(settings: Settings, upstream: bool) -> list[Object]:
    name, labels = "coredns", {"k8s-app": "kube-dns"}
    meta = {"name": name, "namespace": "kube-system"}
    rules = [
        {
            "apiGroups": [""],
            "resources": ["endpoints", "services", "pods", "namespaces"],
            "verbs": ["list", "watch"],
        },
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        },
    ]
    account = {"kind": "ServiceAccount", **meta}
    text = corefile(upstream)
    ports = [
        {"name": f"dns-{protocol.lower()}", "port": 53, "targetPort": 5353, "protocol": protocol}
        for protocol in ("UDP", "TCP")
    ]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "pds:coredns"},
            "rules": rules,
        },
        _binding("pds:coredns", "pds:coredns", account),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": text}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**meta, "name": "kube-dns", "labels": labels},
            "spec": {"clusterIP": settings.dns_ip, "selector": labels, "ports": ports},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _dns_pod(name)},
            },
        },
    ]


def _dns_pod(account: str) -> Object:
    def probe(path: str, port: int, period: int) -> Object:
        return {"httpGet": {"path": path, "port": port}, "periodSeconds": period}

    return {
        "serviceAccountName": account,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID},
        "containers": [
            {
                "name": "coredns",
                "image": DNS_IMAGE,
                "imagePullPolicy": "Never",
                "args": ["-conf", "/etc/coredns/Corefile"],
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                "readinessProbe": probe("/ready", 8181, 2),
                "livenessProbe": probe("/health", 8080, 10),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
            }
        ],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }


def ensure(settings: Settings) -> None:
    """Applies the addons unless these very ones were applied already."""
    upstream = bool((settings.etc / "resolv.conf").read_text())
    wanted = objects(settings, upstream)
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    stamp = settings.run / "addons.applied"
    if not (stamp.exists() and stamp.read_text() == digest):
        kubectl.apply(settings, wanted)
        stamp.write_text(digest)


def wait_ready(settings: Settings) -> None:
    wait_for(
        "cluster DNS",
        lambda: kubectl.condition(kubectl.get(settings, DNS_DEPLOYMENT), "Available"),
        timeout=90,
        hint=f"See `{settings.bin}/kubectl -n kube-system describe pods`.",
    )
