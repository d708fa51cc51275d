"""Taking the cluster down, whatever state it is in: afterwards the host is as it was before.

Order matters. The kubelet goes first, so that nothing restarts what we end; then the pods, while
containerd can still clear up after them; then the programs; then what the kernel keeps for them.
Every step works on what it finds, so that a run that was killed half-way can be taken down too.
"""

import contextlib
import shutil
from pathlib import Path

from pds_cluster import cgroups, mounts, network, node, processes
from pds_cluster.errors import ClusterError
from pds_cluster.settings import DEFAULT_PARENT, Settings, say
from pds_cluster.shell import locked, run

POD_LOG_LINKS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
SHIM_SOCKETS = Path("/run/containerd/s")
SHARED_FOLDERS = (
    *(SHIM_SOCKETS, SHIM_SOCKETS.parent, POD_LOG_LINKS),
    *(CNI_RESULTS, CNI_RESULTS.with_name("cache"), CNI_RESULTS.parent),
)


def down(settings: Settings) -> None:
    """Raises ClusterError naming what could not be removed."""
    with locked(settings.lock):
        processes.stop(settings, processes.PROGRAMS[0])
        sockets = _shim_sockets(settings)
        _end_pods(settings)
        for name in processes.PROGRAMS[1:]:
            processes.stop(settings, name)
        for pid in processes.strays(settings):
            processes.end(pid, grace=1)
        mounts.unmount(settings.run)
        cgroups.remove(settings)
        network.remove(settings)
        node.restore_sysctls(settings)
        for path in (*sockets, *_foreign_files(settings)):
            path.unlink(missing_ok=True)
        for folder in SHARED_FOLDERS:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when nobody else has anything in it
        shutil.rmtree(settings.run, ignore_errors=True)
        settings.lock.unlink(missing_ok=True)
    if settings.run.parent == DEFAULT_PARENT:
        with contextlib.suppress(OSError):
            DEFAULT_PARENT.rmdir()
    left = remains(settings)
    if left:
        raise ClusterError("something is left of the cluster", "\n  ".join(left))
    say(f"{settings.id} is down")


def _end_pods(settings: Settings) -> None:
    cgroups.kill(settings)
    if processes.running(settings, "containerd") is None:
        return
    ctr = ("ctr", "--address", settings.containerd_socket, "--namespace", "k8s.io")
    for words in (("tasks", "ls", "-q"), ("containers", "ls", "-q")):
        ids = run(*ctr, *words, check=False).stdout.split()
        if ids:
            force = ("-f",) if words[0] == "tasks" else ()
            run(*ctr, words[0], "rm", *force, *ids, check=False)


def _shim_sockets(settings: Settings) -> list[Path]:
    """containerd keeps its shims' sockets in one folder of the machine; these are ours."""
    tasks = settings.run / "containerd" / "state" / "io.containerd.runtime.v2.task"
    addresses = (path.read_text() for path in tasks.glob("*/*/address"))
    return [Path(address.strip().removeprefix("unix://")) for address in addresses]


def _foreign_files(settings: Settings) -> list[Path]:
    """What kubelet and CNI write outside the run folder, wherever they are set to write."""
    logs = POD_LOG_LINKS.iterdir() if POD_LOG_LINKS.is_dir() else ()
    links = [
        path for path in logs if path.is_symlink() and path.readlink().is_relative_to(settings.run)
    ]
    return [*links, *CNI_RESULTS.glob(f"{settings.id}-*")]


def remains(settings: Settings) -> list[str]:
    """What is still there after `down`, in words; empty when all is gone."""
    found = [f"process {pid}" for pid in processes.strays(settings)]
    found += [f"process {pid} in a pod" for pid in sorted(cgroups.members(settings))]
    found += [f"mount {point}" for point in mounts.below(settings.run)]
    found += [f"cgroup {folder}" for folder in cgroups.folders(settings) if folder.exists()]
    found += [f"file {path}" for path in (settings.run, *_foreign_files(settings)) if path.exists()]
    if Path("/sys/class/net", settings.id).exists():
        found.append(f"link {settings.id}")
    if run("nft", "list", "table", "ip", settings.id, check=False).returncode == 0:
        found.append(f"nftables table {settings.id}")
    return found
