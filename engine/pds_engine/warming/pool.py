"""A pool of processes in which one may die without the others: compilers are killed for memory.

`concurrent.futures` gives up all its processes when one dies, and does not say which task it had.
Tasks and results cross as MessagePack, as all messages do (`messages`).
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import msgspec

Task = TypeVar("Task")
Result = TypeVar("Result")
_END_SECONDS = 5.0
"""A process that was killed ends sooner, unless a dead volume holds it in a system call."""


class Worker(Protocol):
    """What runs `serve`."""

    @property
    def sentinel(self) -> int:
        """Ready to be read once it has ended."""

    def exitcode(self) -> int | None:
        """How it has ended, or ends within seconds: -9 by SIGKILL. None: it still runs."""

    def kill(self) -> None:
        """End it and all that it has started."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[Task, Result]):
    """The end of one task."""

    task: Task
    result: Result | None
    """None: the process that had it died."""
    exitcode: int | None = None


class Pool(Generic[Task, Result]):
    """Up to `size` workers, each made by `start(end)` when it is needed, and used again.

    `result` is the type of what they answer. Types are those that msgspec knows, and paths.
    Leaving the context kills those that work; the idle ones end by themselves, if nothing failed.
    """

    def __init__(
        self, size: int, start: Callable[[Connection], Worker], result: type[Result]
    ) -> None:
        self._size = size
        self._start = start
        self._result = result
        self._idle: list[_Seat[Task]] = []
        self._busy: list[_Seat[Task]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for seat in (*self._idle, *self._busy):
            seat.end.close()
        for seat in self._idle if error is None else ():
            seat.worker.exitcode()
        for seat in (*self._busy, *self._idle):
            seat.worker.kill()
        self._idle, self._busy = [], []

    @property
    def free(self) -> int:
        """How many more tasks may be begun."""
        return self._size - len(self._busy)

    def begin(self, task: Task) -> None:
        """Give `task` to a worker."""
        while self._idle:
            seat = self._idle.pop()
            seat.task = task
            with contextlib.suppress(OSError):  # it has died since
                seat.end.send_bytes(_packed(task))
                self._busy.append(seat)
                return
            seat.end.close()
        ours, theirs = multiprocessing.Pipe()
        seat = _Seat(self._start(theirs), ours, task)
        self._busy.append(seat)
        with contextlib.suppress(OSError):  # it has died already: `ended` says so
            ours.send_bytes(_packed(task))

    def ended(self, timeout: float) -> list[Ended[Task, Result]]:
        """The tasks that have ended; waits for the first for `timeout` seconds."""
        watched = [each for seat in self._busy for each in (seat.end, seat.worker.sentinel)]
        ready = set(wait(watched, max(0.0, timeout)))
        over = [seat for seat in self._busy if ready & {seat.end, seat.worker.sentinel}]
        return [self._end(seat) for seat in over]

    def _end(self, seat: "_Seat[Task]") -> Ended[Task, Result]:
        self._busy.remove(seat)
        try:
            if seat.end.poll():
                result = _unpacked(seat.end.recv_bytes(), self._result)
                self._idle.append(seat)
                return Ended(seat.task, result)
        except (EOFError, OSError):
            pass
        seat.end.close()
        code = seat.worker.exitcode()
        seat.worker.kill()
        return Ended(seat.task, None, code)


class _Seat(Generic[Task]):
    """A worker, our end of its pipe, and what it does or did last."""

    def __init__(self, worker: Worker, end: Connection, task: Task) -> None:
        self.worker = worker
        self.end = end
        self.task = task


def serve(end: Connection, work: Callable[[Task], Result], task: type[Task]) -> None:
    """A worker: answers each `task` that comes with `work(task)`, until its pool is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            end.send_bytes(_packed(work(_unpacked(end.recv_bytes(), task))))


class Process:
    """A worker that is a process, with a group of its own, so that its compilers end with it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    def exitcode(self) -> int | None:
        self._process.join(_END_SECONDS)  # the sentinel is ready a moment before it has ended
        return self._process.exitcode

    def kill(self) -> None:
        pid = self._process.pid
        self._process.kill()
        with contextlib.suppress(OSError):  # nothing of it is left, or it has no group yet
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        self._process.join(_END_SECONDS)


def processes(
    context: BaseContext, work: Callable[[Task], Result], task: type[Task]
) -> Callable[[Connection], Worker]:
    """What a pool starts: processes of `context`, each with a copy of its own of `work`, which
    takes a `task`."""

    def start(end: Connection) -> Worker:
        process = context.Process(  # type: ignore[attr-defined]
            target=_process, args=(end, work, task), name="compiler"
        )
        process.start()
        end.close()
        return Process(process)

    return start


def _process(end: Connection, work: Callable[[Task], Result], task: type[Task]) -> None:
    os.setsid()
    with contextlib.suppress(OSError):  # rather this one than the warm-up, when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    serve(end, work, task)


def _packed(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=str)


def _unpacked(content: bytes, kind: type[Result]) -> Result:
    def path(wanted: type, value: Any) -> Any:
        return wanted(value)

    return msgspec.msgpack.decode(content, type=kind, dec_hook=path)
