"""`pds-engine warmup`: compiles all that a pod will run, before the pod gets a request.

It runs in an init container, before any collective exists, on all stages and replicas at once. Each
artefact is compiled once per volume. Without a usable volume only the sharing is lost: the pod then
compiles for itself. The proof goes to the termination message, for the operator.
"""

import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from pds_kernels.building import Buildable
from pds_kernels.cache import Artefact, Cache, Manifest, Trouble, write_manifest
from pds_kernels.cache.files import Files
from pds_kernels.cache.manifest import manifest_path, progress_path, replace_file
from pds_kernels.cache.sharing import Try, WorkQueue, order, place

from pds_engine import log
from pds_engine.artefacts.plan import plan, target
from pds_engine.cache import open_cache
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models import tensors
from pds_engine.models.registry import check
from pds_engine.parallel.layout import Numbering
from pds_engine.warming import memory
from pds_engine.warming.account import Account, leave
from pds_engine.warming.compiling import KilledTwice, Made, attempt, compile_all
from pds_engine.warming.pool import Pool, Worker, processes
from pds_engine.warming.progress import Progress, Recorder, display

TERMINATION_LOG = Path("/dev/termination-log")
_PROOF_BYTES = 4096  # what Kubernetes keeps of a termination message
_COMPILERS = {
    "triton": "pds_kernels.builders.triton",
}
"""What takes long to import, by the kind of what it builds."""
logger = logging.getLogger("pds.warmup")


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result of a warm-up."""

    manifest: Manifest | None
    """None: nothing was compiled, since the warm-up was to compile for the volume only."""
    volume: str = ""
    """What is wrong with the volume, where that made a difference."""
    target: str = ""
    """What was compiled for: cpu, or sm_90."""


def run(config: EngineConfig) -> int:
    """Compile or find what every rank of this pod needs; the exit status.

    Raises:
        ConfigError: the model or the layout cannot work, or no cache is mounted.
    """
    log.configure(config.log_level)
    if config.cache.path is None:
        raise ConfigError("cache.path is not set", hint="give the mount point of the compile cache")
    tensors.contents(config.model.path, check(config))  # before anything is compiled in vain
    started = time.monotonic()
    try:
        warmed = warm(config)
    except (OSError, RuntimeError, TimeoutError) as error:
        logger.exception("warm-up failed")
        _prove(Warmed(None), started, str(error))
        return 1
    if warmed.volume:
        logger.warning("%s", warmed.volume)
    _prove(warmed, started)
    return 0


def warm(config: EngineConfig) -> Warmed:
    """Compile or find what this pod's ranks run, and write the manifest of each of its stages.

    Raises:
        RuntimeError: something cannot be compiled, or this pod has no place for it.
        TimeoutError: cache.timeout_seconds were not enough.
    """
    started = time.monotonic()
    found = plan(config)
    wanted = {each.name: each for each in found.wanted}
    cache = open_cache(config)
    show, stages = display(sys.stdout), _stages(config)
    with Progress(len(wanted), show, config.pod.name, stages) as progress:
        artefacts = dict(_found(cache, wanted, progress))
        there = len(artefacts)
        missing = {name: each for name, each in wanted.items() if name not in artefacts}
        if missing and config.cache.only_shared:
            with suppress(Trouble):
                cache.volume.try_out()
            if cache.volume.trouble:
                return Warmed(None, cache.volume.trouble, target=found.target)
        made = _compile(config, cache, missing, progress)
    artefacts |= {name: each.artefact for name, each in made.items() if each.artefact}
    compiled = sum(artefact.built for artefact in artefacts.values())
    manifest = Manifest(
        artefacts={name: artefacts[name].key for name in wanted},
        compiled=compiled,
        reused=len(wanted) - compiled,
        seconds=round(time.monotonic() - started, 3),
        producer=config.pod.name,
    )
    leave(cache.private, _account_of(manifest, stages, there))
    troubles = (cache.volume.trouble, *(each.volume for each in made.values()))
    with suppress(Trouble):  # a record for people: a volume that has all artefacts does without
        for path in _manifest_paths(config):
            cache.volume.write(partial(write_manifest, path=path, manifest=manifest))
    volume = next((text for text in troubles if text), "")
    return Warmed(manifest, volume, found.target)


def _found(
    cache: Cache, wanted: Mapping[str, Buildable], progress: Progress
) -> Iterator[tuple[str, Artefact]]:
    """What needs no process: it is there."""
    for name, each in wanted.items():
        artefact = cache.find(each.kind, each.key_inputs())
        if artefact is not None:
            progress.came(name, artefact.seconds, "found")
            yield name, cache.share(artefact)


def _compile(
    config: EngineConfig, cache: Cache, missing: Mapping[str, Buildable], progress: Progress
) -> Mapping[str, Made]:
    """Build `missing` on processes: compilers are single-threaded and not re-entrant."""
    if not missing:
        return {}
    settings, room = config.cache, memory.ceiling()
    each = max(one.memory for one in missing.values())
    workers = memory.workers(settings.workers, len(missing), room.bytes, each)
    if workers < min(settings.workers, len(missing)):
        logger.warning(
            "%d compilers at once, which take %s: memory ends at %s", workers, each, room
        )
    queue = WorkQueue(
        order(list(missing), _place(config)),
        lease=cache.lease,
        patience=settings.timeout_seconds / 2,
    )
    made: dict[str, Made] = {}
    progress.begin(workers, _recorder(config, cache))
    start = _start(_Attempts(config, cache.volume.trouble), {one.kind for one in missing.values()})
    with Pool[Try, Made](workers, start, Made) as pool:
        try:
            for name, result in compile_all(queue, pool, settings.timeout_seconds):
                if result.artefact is None:
                    continue
                made[name], artefact = result, result.artefact
                progress.came(name, artefact.seconds, "built" if artefact.built else "other")
                logger.info("artefact %s: %s", name, _account(artefact, cache.damage))
        except KilledTwice as error:
            key = cache.key(missing[error.key].key_inputs())
            takes = missing[error.key].memory
            raise RuntimeError(memory.killed(error.key, key, room, takes)) from None
        except TimeoutError:
            late = ", ".join(name for name in missing if name not in made)
            limit = settings.timeout_seconds
            raise TimeoutError(f"no artefact within {limit:.0f} s: {late}") from None
    return made


def _place(config: EngineConfig) -> Fraction:
    """Where in its list this pod begins, so that pods of one volume begin apart."""
    split = config.parallelism
    pods = -(-split.ranks // split.ranks_per_pod)
    return place(config.pod.index, pods, config.pod.group)


def _recorder(config: EngineConfig, cache: Cache) -> Recorder:
    paths = [progress_path(path) for path in _manifest_paths(config)]

    def write(content: bytes) -> bool:
        def replace(files: Files) -> None:
            for path in paths:
                replace_file(files, path, content)

        return cache.volume.record(replace)

    return Recorder(write)


class _Attempts:
    """What a process of the pool does. It keeps its plan, and its cache while the volume is good.

    `avoid`: what is wrong with the volume, where that is known.
    """

    def __init__(self, config: EngineConfig, avoid: str) -> None:
        self._config = config
        self._avoid = avoid
        self._wanted: Mapping[str, Buildable] = {}
        self._cache: Cache | None = None

    def __call__(self, task: Try) -> Made:
        torch.set_num_threads(1)
        try:
            wanted = self._wanted or {each.name: each for each in plan(self._config).wanted}
            cache = self._cache or open_cache(self._config)
        except Exception as error:
            return Made(error=f"{type(error).__name__}: {error}")
        if self._avoid:
            cache.volume.avoid(self._avoid)
        made = attempt(task, wanted[task.key], cache)
        self._wanted, self._cache = wanted, None if cache.volume.trouble else cache
        return made


def _start(work: Callable[[Try], Made], kinds: Set[str]) -> Callable[[Connection], Worker]:
    """Its server imports what builders of these kinds need, once for all workers."""
    context = multiprocessing.get_context("forkserver")
    compilers = [module for kind, module in _COMPILERS.items() if kind in kinds]
    context.set_forkserver_preload([__name__, *compilers])
    return processes(context, work, Try)


def _account(artefact: Artefact, damage: Mapping[str, str]) -> str:
    """Where an artefact that was missing came from, for the log."""
    who = "compiled" if artefact.built else "another process compiled it"
    text = f"{who} in {artefact.seconds:.1f} s"
    wrong = damage.get(artefact.key)
    return f"what lay in the cache was damaged ({wrong}); {text}" if wrong else text


def _account_of(manifest: Manifest, stages: range, there: int) -> Account:
    """`there`: artefacts that lay in the cache when the warm-up began."""
    others = manifest.reused - there
    text = str(stages[0]) if len(stages) == 1 else f"{stages[0]}-{stages[-1]}"
    counts = {"built": manifest.compiled, "found": there, "other": others}
    return Account(text, counts, manifest.seconds)


def _stages(config: EngineConfig) -> range:
    """Of this pod's ranks."""
    split = config.parallelism
    first = config.pod.index * split.ranks_per_pod
    return Numbering.of(split).stages(range(first, first + split.ranks_per_pod))


def _manifest_paths(config: EngineConfig) -> list[Path]:
    root, pod = config.cache.path or Path(), config.pod
    gpu = target(config)
    kind = f".{gpu}" if gpu else ""
    return [
        manifest_path(root, config.model.name, pod.revision, config.role, f"{stage}{kind}")
        for stage in _stages(config)
    ]


def _prove(warmed: Warmed, started: float, error: str = "") -> None:
    """The termination message. Only its texts are cut, so that it stays JSON."""
    manifest, volume = warmed.manifest, warmed.volume
    proof = {
        "manifest": manifest.digest if manifest else "",
        "compiled": manifest.compiled if manifest else 0,
        "reused": manifest.reused if manifest else 0,
        "seconds": round(time.monotonic() - started, 2),
        "target": warmed.target,
    }
    text = json.dumps({**proof, "error": error, "volume": volume})
    while len(text) > _PROOF_BYTES:
        least = 512 if error else 0
        error, volume = error[: len(error) * 3 // 4], volume[: max(least, len(volume) * 3 // 4)]
        text = json.dumps({**proof, "error": error, "volume": volume})
    print(text)
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(text)
