"""The cgroup that holds all pods of an instance, so that they can be found and ended as one."""

import contextlib
import os
import signal
import time
from pathlib import Path

from pds_cluster.settings import Settings

ROOT = Path("/sys/fs/cgroup")
V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")


def is_v2() -> bool:
    return (ROOT / "cgroup.controllers").exists()


def folders(settings: Settings) -> list[Path]:
    """The instance's folder: one on cgroup v2, one for each hierarchy on v1."""
    if is_v2():
        return [ROOT / settings.id]
    hierarchies = (path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted(path / settings.id for path in hierarchies if (path / "cgroup.procs").exists())


def ensure(settings: Settings) -> None:
    """The kubelet refuses a cgroup root that is not there in every hierarchy."""
    for folder in folders(settings):
        folder.mkdir(exist_ok=True)
        if folder.parent.name == "cpuset":
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty at birth: nothing could run there
                if not (folder / name).read_text().strip():
                    (folder / name).write_text((folder.parent / name).read_text())
    if is_v2():
        there = (ROOT / "cgroup.controllers").read_text().split()
        words = " ".join(f"+{name}" for name in V2_CONTROLLERS if name in there)
        (ROOT / "cgroup.subtree_control").write_text(words)
    # Else all pods together weigh as much as one process beside them. The kubelet gives kubepods,
    # which is within, as much.
    name, one = ("cpu.weight", 100) if is_v2() else ("cpu.shares", 1024)
    for folder in folders(settings):
        if (folder / name).exists():
            (folder / name).write_text(str(one * (os.cpu_count() or 1)))


def members(settings: Settings) -> set[int]:
    """Pids of everything that runs in the instance's pods."""
    pids: set[int] = set()
    for folder in folders(settings):
        for path, _, _ in os.walk(folder):  # passes over groups that vanish meanwhile
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in Path(path, "cgroup.procs").read_text().split())
    return pids - {0}


def kill(settings: Settings, patience: float = 10) -> None:
    """Ends everything in the pods; returns once nothing is left or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (pids := members(settings)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(settings: Settings) -> None:
    for folder in folders(settings):
        below = sorted((path for path in folder.glob("**/") if path.is_dir()), reverse=True)
        for path in below:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
