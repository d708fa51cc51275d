"""Programs that run in the background: started once, found again, ended by their own pid.

A process is what its pid file says only while pid *and* start time agree with /proc, so a number
that the kernel has given to somebody else is never signalled.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pds_cluster.errors import ClusterError
from pds_cluster.network import inside
from pds_cluster.settings import Settings
from pds_cluster.shell import Arg

# In the order in which they are to end: see teardown.py.
PROGRAMS = (
    "kubelet",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "containerd",
    "kube-apiserver",
    "etcd",
)
SHIM = "containerd-shim-runc-v2"


@dataclass(frozen=True)
class Program:
    """A program to keep running; it is started anew when its words or its `reads` change."""

    name: str
    argv: tuple[Arg, ...]
    ready: Callable[[], bool]
    reads: tuple[Path, ...] = ()

    def digest(self) -> str:
        state = hashlib.sha256(repr([str(word) for word in self.argv]).encode())
        for path in self.reads:
            state.update(path.read_bytes())
        return state.hexdigest()


def pid_file(settings: Settings, name: str) -> Path:
    return settings.run / "pids" / f"{name}.json"


def log_file(settings: Settings, name: str) -> Path:
    return settings.run / "logs" / f"{name}.log"


def start_time(pid: int) -> str | None:
    """The kernel's start time of `pid`, None when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def running(settings: Settings, name: str) -> tuple[int, str] | None:
    """(pid, digest it was started with) of our process called `name`, None when it is not there."""
    try:
        record = json.loads(pid_file(settings, name).read_text())
        pid, started, digest = int(record["pid"]), record["started"], str(record["digest"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return (pid, digest) if start_time(pid) == started else None


def strays(settings: Settings, names: tuple[str, ...] = (SHIM, *PROGRAMS)) -> list[int]:
    """Processes called one of `names` that have our run folder among their words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it may end while we look
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            ours = any(f"{settings.run}/" in word for word in words)
            if ours and Path(words[0]).name in names:
                found.append(int(entry.name))
    return sorted(found)


def ensure(settings: Settings, program: Program) -> bool:
    """Starts `program` unless it runs as asked for. Returns whether it was started."""
    digest = program.digest()
    found = running(settings, program.name)
    if found and found[1] == digest:
        return False
    stop(settings, program.name)
    for pid in strays(settings, (program.name,)):  # an `up` was killed before it could note it
        end(pid, grace=10)
    log = log_file(settings, program.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(word) for word in inside(settings, *program.argv)]
    with log.open("w") as out:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=settings.run,
            env=_environment(),
            start_new_session=True,
        )
    record = {"pid": child.pid, "started": start_time(child.pid), "digest": digest}
    path = pid_file(settings, program.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return True


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", "")
    # GOGC: the API server's collections are a tenth of its work, and the memory is there.
    return {
        "PATH": f"{path}:/usr/sbin:/sbin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "GOGC": "400",
    }


def wait_ready(settings: Settings, programs: list[Program], timeout: float = 90) -> None:
    """Until all are ready. Raises ClusterError with the end of the log of one that is not."""
    deadline = time.monotonic() + timeout
    waiting = list(programs)
    while waiting := [program for program in waiting if not program.ready()]:
        for program in waiting:
            if running(settings, program.name) is None:
                raise ClusterError(f"{program.name} ended", tail(settings, program.name))
        if time.monotonic() > deadline:
            name = waiting[0].name
            raise ClusterError(f"{name} is not ready after {timeout:.0f} s", tail(settings, name))
        time.sleep(0.1)


def tail(settings: Settings, name: str, lines: int = 12) -> str:
    log = log_file(settings, name)
    text = log.read_text(errors="replace") if log.exists() else ""
    return f"{log}:\n" + "\n".join(text.splitlines()[-lines:])


def stop(settings: Settings, name: str, grace: float = 10) -> None:
    """Ends our process called `name` (TERM, KILL after `grace` seconds), waits until it is gone."""
    found = running(settings, name)
    if found:
        end(found[0], grace)
    pid_file(settings, name).unlink(missing_ok=True)


def end(pid: int, grace: float) -> None:
    started = start_time(pid)
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reaps it when it is a child of ours
            if start_time(pid) != started or started is None:
                return
            time.sleep(0.05)
    raise ClusterError(f"process {pid} does not end, not even by SIGKILL")
