"""Builders that cost nothing, some of which are killed; and what a process of a pool does."""

import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pds_engine.warming.compiling import Made, attempt
from pds_kernels.cache import Cache
from pds_kernels.cache.sharing import Try


@dataclass(frozen=True)
class Fake:
    """Notes each build in the folder `log`: name, number of the build, how many others ran."""

    name: str
    log: Path
    dies: int = 0
    """The first so many builds are killed."""
    seconds: float = 0.0
    how: str = "itself"
    kind: ClassVar[str] = "fake"
    memory: ClassVar[int] = 1

    def key_inputs(self) -> dict[str, str]:
        return {"name": self.name}

    def build(self, folder: Path) -> None:
        running = self.log / "running"
        running.mkdir(parents=True, exist_ok=True)
        mine = running / f"{self.name}-{os.getpid()}"
        mine.touch()
        others = [each for each in running.iterdir() if each != mine]
        before = len(list(self.log.glob(f"{self.name}.*")))
        (self.log / f"{self.name}.{before}-{os.getpid()}").write_text(str(len(others)))
        time.sleep(self.seconds)
        mine.unlink()
        if before < self.dies:
            self._die()
        (folder / "kernel").write_text(self.name)

    def _die(self) -> None:
        match self.how:
            case "itself":
                os.kill(os.getpid(), signal.SIGKILL)
            case "compiler":
                subprocess.run(["sh", "-c", "kill -9 $$"], check=True)
            case "memory":
                eat()
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case _:
                raise ValueError("no such instruction")


def eat() -> None:
    """Take memory without end; this process may have 256 MiB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), hard))
    eaten = []
    try:
        while True:
            eaten.append(bytearray(16 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass(frozen=True)
class Attempts:
    """The work of a process: builds `fakes` into the volume `root`, as the pod `pod`."""

    root: Path
    pod: str
    fakes: tuple[Fake, ...]
    lease: float = 20.0

    def __call__(self, task: Try) -> Made:
        (wanted,) = (fake for fake in self.fakes if fake.name == task.key)
        cache = Cache(self.root / "volume", self.root / self.pod, b"key", lease=self.lease)
        return attempt(task, wanted, cache)


def builds(log: Path) -> dict[str, list[int]]:
    """How many others ran, for each build of each name."""
    found: dict[str, list[int]] = {}
    for note in sorted(log.glob("*.*")):
        found.setdefault(note.name.partition(".")[0], []).append(int(note.read_text()))
    return found


def answer(task: str) -> str:
    """The work of a process that dies when it is told to; "orphan" leaves a child behind."""
    match task:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "orphan":
            child = subprocess.Popen(["sleep", "60"])
            Path(os.environ["PDS_TEST_ORPHAN"]).write_text(str(child.pid))
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            signal.pause()
    return f"{task} {os.getpid()}"
