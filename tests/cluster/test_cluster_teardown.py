"""A second instance beside the first: it survives a crash, and leaves nothing when it goes.

What is left is judged by the kernel's own tables, not by what the tear-down itself looks for.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pds_cluster import cgroups, processes
from pds_cluster.settings import TREE, Settings, load
from pds_cluster.shell import wait_for
from pds_cluster.testing import Cluster, find

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ENV = {"PDS_CLUSTER_NAME": "second", "PDS_CLUSTER_BLOCK": "9"}
DNS = "deployment/coredns"


def run_cli(command: str) -> None:
    argv = [sys.executable, "-m", "pds_cluster", command]
    done = subprocess.run(
        argv, cwd=TREE / "cluster", env=_env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _env() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PDS_")}
    return {**inherited, **ENV}


@pytest.fixture(scope="module")
def settings(cluster: Cluster) -> Iterator[Settings]:
    """Needs the first cluster only to know that this machine can run one."""
    if not cluster.is_local:
        pytest.skip("is about the local cluster, and PDS_CONTEXT names one of your own")
    yield load(ENV)
    run_cli("down")


@pytest.fixture
def second(settings: Settings) -> Cluster:
    """The second instance, up. It stays up for the next test: bringing it up takes a while."""
    run_cli("up")
    return find(settings)


def traces(settings: Settings) -> dict[str, list[str]]:
    """Everything of the instance that the machine knows of, by kind."""
    run, name, address = str(settings.run), settings.id, f"10.243.{settings.block}."

    def lines(*argv: str) -> list[str]:
        text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return [line for line in text.splitlines() if name in line or address in line]

    def below(*folders: str) -> list[str]:
        paths = [path for folder in folders for path in Path(folder).glob("*")]
        links = [
            f"{path} -> {path.readlink()}" if path.is_symlink() else str(path) for path in paths
        ]
        return [text for text in links if name in text or run in text]

    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        "processes": _processes(settings),
        "mounts": [line for line in mounts if run in line],
        "links": lines("ip", "-o", "addr"),
        "routes": lines("ip", "route"),
        "nftables": lines("nft", "list", "tables"),
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}")],
        "files": below("/var/log/containers", "/var/lib/cni/results", str(settings.run.parent)),
    }


def _processes(settings: Settings) -> list[str]:
    """By what they were started with and by the control group they are in."""
    marks = (f"{settings.run}/", f"/{settings.id}/")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it may end while we look
            text = (entry / "cmdline").read_text() + (entry / "cgroup").read_text()
            if any(mark in text for mark in marks):
                found.append(f"{entry.name} {text[:80]!r}")
    return found


def shims(settings: Settings) -> list[Path]:
    """Sockets that the instance's shims listen on, which containerd keeps in a shared folder."""
    addresses = (settings.run / "containerd").glob("state/*/k8s.io/*/address")
    ours = {path.read_text().strip().removeprefix("unix://") for path in addresses}
    return [Path(path) for path in sorted(ours) if Path(path).is_socket()]


NOTHING: dict[str, list[str]] = {
    kind: [] for kind in ("processes", "mounts", "links", "routes", "nftables", "cgroups", "files")
}


def test_up_after_a_killed_up(settings: Settings) -> None:
    """Killed while it waits for what it started, and before it could note one of them."""
    argv = [sys.executable, "-m", "pds_cluster", "up"]
    with subprocess.Popen(argv, cwd=TREE / "cluster", env=_env(), stderr=subprocess.DEVNULL) as up:
        noted = processes.pid_file(settings, "kube-apiserver")
        wait_for("a start", lambda: noted.exists() or up.poll() is not None, timeout=60)
        up.kill()
    assert noted.exists()
    (lost,) = processes.strays(settings, ("etcd",))
    processes.pid_file(settings, "etcd").unlink()
    run_cli("up")
    assert processes.start_time(lost) is None
    assert find(settings).kubectl("get", "--raw", "/readyz") == "ok"


def test_killed_programs_come_back_and_pods_live_on(second: Cluster, settings: Settings) -> None:
    before = _dns_pod(second)
    for name in ("kubelet", "containerd", "kube-apiserver", "etcd", "kube-proxy"):
        _kill(settings, name)
    run_cli("up")
    second.wait(DNS, "Available", "kube-system")
    after = _dns_pod(second)
    assert after == before  # the same pod, its containers not restarted


def test_up_after_a_lost_link(second: Cluster, settings: Settings) -> None:
    """As after the machine restarted its network."""
    subprocess.run(["ip", "link", "del", settings.id], check=True)
    run_cli("up")
    assert second.kubectl("get", "--raw", "/readyz") == "ok"


def test_down_leaves_nothing(second: Cluster, settings: Settings) -> None:
    there = traces(settings)
    assert all(there.values()), there  # the check below can see every kind
    own_shims = shims(settings)
    run_cli("down")
    assert traces(settings) == NOTHING
    assert own_shims
    assert not any(path.exists() for path in own_shims)


def test_down_after_a_crash_of_everything(second: Cluster, settings: Settings) -> None:
    """Nothing is left to ask: no API server, no containerd, no kubelet."""
    for name in processes.PROGRAMS:
        _kill(settings, name)
    assert cgroups.members(settings), "pods outlive the programs that started them"
    run_cli("down")
    assert traces(settings) == NOTHING


def _kill(settings: Settings, name: str) -> None:
    found = processes.running(settings, name)
    assert found is not None, f"{name} does not run"
    os.kill(found[0], signal.SIGKILL)


def _dns_pod(cluster: Cluster) -> list[tuple[str, int]]:
    found = cluster.kubectl("-n", "kube-system", "get", "pods", "-o", "json")
    return [
        (pod["metadata"]["uid"], status["restartCount"])
        for pod in json.loads(found)["items"]
        for status in pod["status"]["containerStatuses"]
    ]
