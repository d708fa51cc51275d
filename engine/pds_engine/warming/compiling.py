"""One warm-up's builds, spread over its processes, beside other warm-ups of the same volume."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pds_kernels.building import Buildable, was_killed
from pds_kernels.cache import Artefact, Cache, Held
from pds_kernels.cache.sharing import Try, WorkQueue

from pds_engine.warming.pool import Ended, Pool

logger = logging.getLogger("pds.warmup")
_SIGKILL = -9


@dataclass(frozen=True, slots=True)
class Made:
    """The result of one attempt."""

    artefact: Artefact | None = None
    beat: bytes | None = None
    """Another process builds it: what its lock holds."""
    error: str = ""
    killed: bool = False
    """The error is that a compiler was killed."""
    volume: str = ""
    """What is wrong with the volume, if anything."""


class KilledTwice(RuntimeError):
    """The compiler of `key` was killed, also when it ran alone."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the compiler of {key} was killed twice")
        self.key = key


def attempt(task: Try, wanted: Buildable, cache: Cache) -> Made:
    """What a process of the pool does with one task. Raises nothing."""
    kind, inputs = wanted.kind, wanted.key_inputs()
    try:
        if task.waited is not None:
            artefact = cache.build_alone(kind, inputs, wanted.build, waited=task.waited)
        else:
            found = cache.attempt(kind, inputs, wanted.build, stale=task.stale)
            if isinstance(found, Held):
                return Made(beat=found.beat, volume=cache.volume.trouble)
            artefact = found
    except Exception as error:  # some compilers' own errors cannot cross a process
        text, besides = f"{type(error).__name__}: {error}", cache.volume.trouble
        text = text.encode(errors="replace").decode()  # names of files may be no UTF-8
        return Made(
            error=f"{text}; besides, {besides}" if besides else text,
            killed=was_killed(error),
            volume=besides,
        )
    return Made(artefact, volume=cache.volume.trouble)


def compile_all(
    queue: WorkQueue,
    pool: Pool[Try, Made],
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[str, Made]]:
    """Each key of `queue` with its artefact, as they come.

    Raises:
        RuntimeError: one cannot be compiled.
        KilledTwice: the compiler of one was killed, also when it ran alone.
        TimeoutError: they did not come within `timeout` seconds.
    """
    end = clock() + timeout
    while queue.left:
        now = clock()
        while pool.free and (task := queue.next(now)):
            pool.begin(task)
        if now > end:
            raise TimeoutError
        due = queue.due(now) if pool.free else None
        for ended in pool.ended(end - now if due is None else min(due, end - now)):
            made = _report(queue, ended, clock())
            if made is not None:
                yield ended.task.key, made


def _report(queue: WorkQueue, ended: Ended[Try, Made], now: float) -> Made | None:
    """Tell the queue how a task has ended; the result, if it has an artefact."""
    key, made = ended.task.key, ended.result
    if made is None:
        made = Made(error=_death(ended.exitcode), killed=ended.exitcode == _SIGKILL)
    if made.beat is not None:
        queue.held(key, made.beat, now)
        return None
    if made.artefact is not None:
        queue.done(key)
        return made
    if not made.killed:
        raise RuntimeError(f"artefact {key}: {made.error}")
    if not queue.killed(key):
        raise KilledTwice(key)
    logger.warning(
        "artefact %s: its compiler was killed; tried once more, alone, after others", key
    )
    return None


def _death(code: int | None) -> str:
    how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
    return f"the process that compiled it ended {how}"
