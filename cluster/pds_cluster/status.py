"""What runs and how to reach it."""

from pds_cluster import control_plane, kubectl, node, processes
from pds_cluster.errors import ClusterError
from pds_cluster.settings import Settings


def show(settings: Settings) -> None:
    """Prints the state. Raises ClusterError when a part is missing."""
    programs = [
        control_plane.etcd(settings),
        control_plane.apiserver(settings),
        control_plane.controller_manager(settings),
        control_plane.scheduler(settings),
        node.containerd(settings),
        node.kubelet(settings),
        node.kube_proxy(settings),
    ]
    missing = []
    for program in programs:
        found = processes.running(settings, program.name)
        if found is None or not program.ready():
            missing.append(program.name)
        print(f"{program.name:26}{f'pid {found[0]}' if found else 'not running'}")
    there = None if missing else kubectl.get(settings, f"/api/v1/nodes/{settings.id}")
    ready = kubectl.condition(there, "Ready")
    print(f"{'node ' + settings.id:26}{'Ready' if ready else 'not ready'}")
    if missing:
        raise ClusterError(f"not healthy: {', '.join(missing)}", "`up` starts what is missing.")
    print(f"\nexport KUBECONFIG={settings.kubeconfig} PATH={settings.bin}:$PATH")
