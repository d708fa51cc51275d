"""What runs and how to reach it."""

from pds_cluster import control_plane, kubectl, node, processes
from pds_cluster.errors import ClusterError
from pds_cluster.processes import Program
from pds_cluster.settings import Settings


def programs(settings: Settings) -> list[Program]:
    return [
        control_plane.etcd(settings),
        control_plane.apiserver(settings),
        control_plane.controller_manager(settings),
        control_plane.scheduler(settings),
        node.containerd(settings),
        node.kubelet(settings),
        node.kube_proxy(settings),
    ]


def missing(settings: Settings) -> list[str]:
    """Names of the programs that do not run, or run and are not ready."""
    return [
        program.name
        for program in programs(settings)
        if processes.running(settings, program.name) is None or not program.ready()
    ]


def show(settings: Settings) -> None:
    """Prints the state. Raises ClusterError when a part is missing."""
    lacking = missing(settings)
    for program in programs(settings):
        found = processes.running(settings, program.name)
        state = f"pid {found[0]}" if found else "not running"
        note = ", not ready" if found and program.name in lacking else ""
        print(f"{program.name:26}{state}{note}")
    there = None if lacking else kubectl.get(settings, f"/api/v1/nodes/{settings.id}")
    ready = kubectl.condition(there, "Ready")
    print(f"{'node ' + settings.id:26}{'Ready' if ready else 'not ready'}")
    if lacking or not ready:
        what = ", ".join(lacking) or "the node"
        raise ClusterError(f"not healthy: {what}", "`up` starts what is missing.")
    print(f"\nexport KUBECONFIG={settings.kubeconfig} PATH={settings.bin}:$PATH")
