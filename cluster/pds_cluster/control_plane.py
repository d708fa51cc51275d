"""etcd, API server, controller manager and scheduler: their words, their files, their readiness."""

import json
from pathlib import Path

from pds_cluster import probe
from pds_cluster.processes import Program
from pds_cluster.settings import Settings
from pds_cluster.shell import write


def etcd(settings: Settings) -> Program:
    pki, metrics = settings.pki, f"http://{settings.node_ip}:2381"
    return Program(
        "etcd",
        (
            *("etcd", "--name=node", f"--data-dir={settings.run / 'etcd'}"),
            "--listen-client-urls=https://127.0.0.1:2379",
            "--advertise-client-urls=https://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=node=http://127.0.0.1:2380",
            f"--listen-metrics-urls={metrics}",
            *(f"--cert-file={pki / 'etcd.crt'}", f"--key-file={pki / 'etcd.key'}"),
            *("--client-cert-auth", f"--trusted-ca-file={pki / 'ca.crt'}"),
        ),
        ready=lambda: '"true"' in (probe.get(settings, f"{metrics}/health") or ""),
        reads=(pki / "etcd.crt",),
    )


def apiserver(settings: Settings) -> Program:
    pki = settings.pki
    return Program(
        "kube-apiserver",
        (
            settings.bin / "kube-apiserver",
            *("--bind-address=0.0.0.0", f"--advertise-address={settings.node_ip}"),
            *("--secure-port=6443", "--anonymous-auth=false", "--profiling=false"),
            "--etcd-servers=https://127.0.0.1:2379",
            f"--etcd-cafile={pki / 'ca.crt'}",
            f"--etcd-certfile={pki / 'etcd-client.crt'}",
            f"--etcd-keyfile={pki / 'etcd-client.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={settings.service_cidr}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'service-account.pub'}",
            f"--service-account-signing-key-file={pki / 'service-account.key'}",
            # The node's name need not resolve; and `logs` and `exec` need a certificate of ours.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        ),
        ready=lambda: probe.ok(settings, f"{settings.api_url}/readyz"),
        reads=(pki / "apiserver.crt",),
    )


def _with_kubeconfig(settings: Settings, user: str) -> tuple[str, ...]:
    """The words by which a component that serves health and metrics knows the API server."""
    config = settings.etc / f"{user}.kubeconfig"
    return (
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={settings.node_ip}",
        f"--tls-cert-file={settings.pki / user}.crt",
        f"--tls-private-key-file={settings.pki / user}.key",
        "--profiling=false",
        "--leader-elect=false",
    )


def controller_manager(settings: Settings) -> Program:
    pki, user = settings.pki, "controller-manager"
    return Program(
        "kube-controller-manager",
        (
            settings.bin / "kube-controller-manager",
            f"--kubeconfig={settings.etc / user}.kubeconfig",
            *_with_kubeconfig(settings, user),
            "--use-service-account-credentials=true",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'service-account.key'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            *("--kube-api-qps=200", "--kube-api-burst=400"),
        ),
        ready=lambda: probe.ok(settings, f"https://{settings.node_ip}:10257/healthz"),
        reads=(pki / f"{user}.crt",),
    )


def scheduler(settings: Settings) -> Program:
    user = "scheduler"
    config = settings.etc / "scheduler.json"
    return Program(
        "kube-scheduler",
        (
            *(settings.bin / "kube-scheduler", f"--config={config}"),
            *_with_kubeconfig(settings, user),
        ),
        ready=lambda: probe.ok(settings, f"https://{settings.node_ip}:10259/healthz"),
        reads=(config, settings.pki / f"{user}.crt"),
    )


def write_files(settings: Settings) -> None:
    # At its default of 50 requests a second the scheduler, not the API server, limits a burst.
    client = {
        "kubeconfig": str(settings.etc / "scheduler.kubeconfig"),
        "qps": 1000,
        "burst": 1000,
    }
    write_json(
        settings.etc / "scheduler.json",
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": client,
            "leaderElection": {"leaderElect": False},
        },
    )


def write_json(path: Path, content: object, mode: int = 0o644) -> None:
    write(path, json.dumps(content, indent=1) + "\n", mode)
