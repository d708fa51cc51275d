"""containerd, kubelet and kube-proxy, with all their state inside the run folder."""

from pathlib import Path

from pds_cluster import cgroups, probe
from pds_cluster.control_plane import write_json
from pds_cluster.processes import Program
from pds_cluster.settings import PAUSE_IMAGE, Settings
from pds_cluster.shell import run, write

CNI_BIN = Path("/usr/lib/cni")
# What the kubelet sets on the host; `down` puts back what was there before.
KUBELET_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
SYSCTLS = Path("/proc/sys")


def containerd(settings: Settings) -> Program:
    config, socket = settings.etc / "containerd.toml", settings.containerd_socket
    return Program(
        "containerd",
        ("containerd", "--config", config),
        ready=lambda: run("ctr", "--address", socket, "version", check=False).returncode == 0,
        reads=(config,),
    )


def kubelet(settings: Settings) -> Program:
    config = settings.etc / "kubelet.json"
    return Program(
        "kubelet",
        (
            settings.bin / "kubelet",
            *(f"--config={config}", f"--root-dir={settings.run / 'kubelet'}"),
            f"--kubeconfig={settings.etc / 'kubelet.kubeconfig'}",
            f"--cert-dir={settings.run / 'kubelet' / 'pki'}",
            *(f"--hostname-override={settings.id}", f"--node-ip={settings.node_ip}"),
        ),
        ready=lambda: probe.ok(settings, f"http://{settings.node_ip}:10248/healthz"),
        reads=(config, settings.pki / "kubelet.crt", settings.etc / "resolv.conf"),
    )


def kube_proxy(settings: Settings) -> Program:
    config = settings.etc / "kube-proxy.json"
    return Program(
        "kube-proxy",
        (settings.bin / "kube-proxy", f"--config={config}"),
        ready=lambda: probe.ok(settings, f"http://{settings.node_ip}:10256/healthz"),
        reads=(config, settings.pki / "kube-proxy.crt"),
    )


def write_files(settings: Settings) -> None:
    write(settings.etc / "containerd.toml", _containerd_config(settings, _may_lower_oom_score()))
    write(settings.etc / "resolv.conf", resolv_conf(_host_resolv_conf()))
    write_json(settings.etc / "cni" / "10-pds.conflist", _cni_config(settings))
    write_json(settings.etc / "kubelet.json", _kubelet_config(settings))
    write_json(settings.etc / "kube-proxy.json", _kube_proxy_config(settings))
    cgroups.ensure(settings)
    for name in KUBELET_SYSCTLS:
        saved = settings.run / "before" / "sysctl" / name
        if not saved.exists():
            write(saved, (SYSCTLS / name).read_text())


def restore_sysctls(settings: Settings) -> None:
    for name in KUBELET_SYSCTLS:
        saved = settings.run / "before" / "sysctl" / name
        if saved.exists() and saved.read_text() != (SYSCTLS / name).read_text():
            (SYSCTLS / name).write_text(saved.read_text())


def _may_lower_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE (bit 24); without it runc dies on a lowered OOM score."""
    status = Path("/proc/self/status").read_text()
    bounding = next(line for line in status.splitlines() if line.startswith("CapBnd:"))
    return bool(int(bounding.split()[1], 16) >> 24 & 1)


def _containerd_config(settings: Settings, may_lower_oom_score: bool) -> str:
    run_dir = settings.run / "containerd"
    return f"""version = 2
root = "{run_dir / "root"}"
state = "{run_dir / "state"}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{settings.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{run_dir / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
netns_mounts_under_state_dir = true
restrict_oom_score_adj = {str(not may_lower_oom_score).lower()}
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN}"
conf_dir = "{settings.etc / "cni"}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{settings.run / "runc"}"
"""


def _cni_config(settings: Settings) -> object:
    """A routed link for each pod. Not a bridge: a Service whose pod sits on the caller's own bridge
    would answer past the address translation wherever the kernel lacks br_netfilter."""
    ipam = {
        "type": "host-local",
        "dataDir": str(settings.run / "cni"),
        "ranges": [[{"subnet": settings.pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "0.4.0",
        "name": settings.id,
        "plugins": [{"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam}],
    }


def _kubelet_config(settings: Settings) -> object:
    pki = settings.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{settings.containerd_socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "address": settings.node_ip,
        "healthzBindAddress": settings.node_ip,
        "clusterDNS": [settings.dns_ip],
        "clusterDomain": "cluster.local",
        "resolvConf": str(settings.etc / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.id}",
        "failCgroupV1": False,
        "failSwapOn": False,
        # Legacy chains that only iptables users want.
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(settings.run / "pod-logs"),
        "volumePluginDir": str(settings.run / "volume-plugins"),
        # How often a Secret that has changed is brought to pods that mount it; by itself a minute.
        "syncFrequency": "10s",
        # There is no registry to fetch an image from again: never collect one.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
    }


def _kube_proxy_config(settings: Settings) -> object:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": settings.pod_cidr,
        "hostnameOverride": settings.id,
        "healthzBindAddress": f"{settings.node_ip}:10256",
        "clientConnection": {"kubeconfig": str(settings.etc / "kube-proxy.kubeconfig")},
        # The table's size is the host's to set, not a network namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def _host_resolv_conf() -> str:
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        if path.exists():
            return path.read_text()
    return ""


def resolv_conf(host: str) -> str:
    """The host's name servers that pods can reach: those on its loopback are out of their sight."""
    lines = (line.split() for line in host.splitlines())
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return "".join(f"nameserver {ip}\n" for ip in servers if not ip.startswith(("127.", "::1")))
