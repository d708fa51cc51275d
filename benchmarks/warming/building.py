"""Real warm-ups in processes that begin together on one folder; every build is noted with its cost.

Each is a fork of this process, which has imported and planned all: what every pod does by itself
before it compiles is measured apart (`warmup.begin`).
"""

import json
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from pds_engine.warming import memory
from pds_engine.warming.compiling import Made, attempt, compile_all
from pds_engine.warming.pool import Pool, processes
from pds_kernels.builders import deep_gemm
from pds_kernels.builders import triton as ahead
from pds_kernels.building import Buildable
from pds_kernels.cache import Artefact, Cache
from pds_kernels.cache.sharing import Try, WorkQueue, order

TIMEOUT = 3600.0
WORKERS = 2
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Built:
    """One build by one process."""

    name: str
    key: str
    kind: str
    cpu: float
    """Seconds, with those of its compilers."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Some pods that began together."""

    builds: tuple[Built, ...]
    wall: float
    """Seconds until the last of them had all."""
    cpu: tuple[float, ...]
    """Of each pod itself, without its compilers."""
    troubles: tuple[str, ...] = ()
    """What was wrong with the folder, as pods saw it: then they compile for themselves."""


@dataclass(frozen=True)
class Noted:
    """A Buildable whose build is noted in the file `log`."""

    real: Buildable
    log: Path
    kind: str
    name: str
    memory: int

    def key_inputs(self) -> Mapping[str, str]:
        return self.real.key_inputs()

    def build(self, folder: Path) -> None:
        begun = _cpu()
        self.real.build(folder)
        line = json.dumps([self.name, _digest(self.real), self.kind, _cpu() - begun]) + "\n"
        with self.log.open("a") as file:
            file.write(line)


@dataclass(frozen=True)
class Attempts:
    """What a compile process of the pod `pod` does."""

    root: Path
    pod: str
    wanted: Mapping[str, Buildable]

    def __call__(self, task: Try) -> Made:
        torch.set_num_threads(1)
        real = self.wanted[task.key]
        noted = Noted(real, self.root / f"{self.pod}.log", real.kind, real.name, real.memory)
        return attempt(task, noted, cache(self.root, self.pod))


def cache(root: Path, pod: str) -> Cache:
    """As the pod `pod` has it: one volume for all, and a folder of its own."""
    return Cache(root / "volume", root / pod, b"benchmark", producer=pod)


def together(
    root: Path,
    wanted: Mapping[str, Mapping[str, Buildable]],
    begins: Sequence[Fraction],
    *,
    warm: bool = False,
) -> Ran:
    """Warm up these pods at once, each of which wants what it does, on the folder `root`.

    `warm`: all is there. Else a pod does not look before it compiles: that takes threads, and
    compile processes are forked from the one that looks.

    Raises:
        RuntimeError: one of them has failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    for log in root.glob("*.log"):
        log.unlink()
    volume = _Volume(root, warm, memory.ceiling().bytes // len(wanted))
    barrier, said = _FORK.Barrier(len(wanted)), _FORK.SimpleQueue()
    started = [
        _FORK.Process(target=_pod, args=(volume, pod, artefacts, begin, barrier, said))
        for (pod, artefacts), begin in zip(wanted.items(), begins, strict=True)
    ]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join()
    finally:  # out of time: each ends its compilers
        for process in started:
            if process.is_alive():
                process.terminate()
    if any(process.exitcode for process in started):
        raise RuntimeError("a warm-up has failed: see above")
    found = [said.get() for _ in started]
    lines = [line for log in sorted(root.glob("*.log")) for line in log.read_text().splitlines()]
    builds = tuple(Built(*json.loads(line)) for line in lines)
    walls, cpu, troubles = zip(*found, strict=True)
    told = dict.fromkeys(trouble for each in troubles for trouble in each)
    return Ran(builds, max(walls), cpu, tuple(told))


@dataclass(frozen=True, slots=True)
class _Volume:
    """What pods share."""

    root: Path
    warm: bool
    """It has all artefacts."""
    share: int
    """Bytes of memory that each may use."""


def _pod(
    volume: _Volume,
    pod: str,
    wanted: Mapping[str, Buildable],
    begin: Fraction,
    barrier: Any,
    said: Any,
) -> None:
    """The process of a pod: as `pds_engine.warmup.warm`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    barrier.wait()
    begun, cpu = time.monotonic(), time.process_time()
    mine, troubles = cache(volume.root, pod), set()
    if volume.warm:
        found = {name: mine.find(each.kind, each.key_inputs()) for name, each in wanted.items()}
        troubles.add(mine.volume.trouble)
    else:
        made = _compiled(volume, pod, wanted, begin)
        found = {name: each.artefact for name, each in made.items()}
        troubles |= {each.volume for each in made.values()}
    for name, artefact in found.items():
        if artefact is None:
            raise RuntimeError(f"{pod} lacks {name}")
        _install(wanted[name], artefact, volume.root / pod / "installed")
    wall, spent = time.monotonic() - begun, time.process_time() - cpu
    said.put((wall, spent, sorted(troubles - {""})))


def _compiled(
    volume: _Volume, pod: str, wanted: Mapping[str, Buildable], begin: Fraction
) -> dict[str, Made]:
    most = max(each.memory for each in wanted.values())
    workers = memory.workers(WORKERS, len(wanted), volume.share, most)
    queue = WorkQueue(order(list(wanted), begin), lease=20.0, patience=TIMEOUT / 2)
    work = Attempts(volume.root, pod, wanted)
    with Pool[Try, Made](workers, processes(_FORK, work, Try), Made) as pool:
        return dict(compile_all(queue, pool, TIMEOUT))


def _install(wanted: Buildable, artefact: Artefact, place: Path) -> None:
    """Where a process on the GPU would look for it."""
    if isinstance(wanted, deep_gemm.DeepGemmKernel):
        deep_gemm.install(wanted, artefact.folder, place / "deep_gemm")
    else:
        ahead.install(artefact.folder, place / "triton")


def _digest(wanted: Buildable) -> str:
    return json.dumps(dict(wanted.key_inputs()), sort_keys=True)


def _cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)
