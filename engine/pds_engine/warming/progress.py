"""What a warm-up says while it runs: a bar, or a line an artefact; and a record for others."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from pds_kernels.cache.sharing import seconds_left
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

Source = Literal["built", "found", "other"]
"""Compiled here; there when the warm-up began; or compiled by another process meanwhile."""
_EVERY = 1.0
"""Seconds between two records at least."""


@dataclass(frozen=True, slots=True)
class Step:
    """An artefact that has come."""

    artefact: str
    n: int
    of: int
    seconds: float
    """Of compilation, by whoever compiled it."""
    left: float | None
    """Seconds that the others will take; None: nobody knows yet."""
    source: Source
    stages: tuple[int, ...]
    """Of the group's pipeline: what this pod has of it."""

    def line(self) -> str:
        return json.dumps(asdict(self))


class Display(Protocol):
    """Shows steps to whoever looks."""

    def show(self, step: Step) -> None:
        """One more has come."""

    def close(self) -> None:
        """No more come."""


class Lines:
    """A line of JSON for each artefact."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, step: Step) -> None:
        print(step.line(), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left to say."""


class Bar:
    """A bar on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._bar = RichProgress(
            TextColumn("compiling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, step: Step) -> None:
        left = "" if step.left is None else f"{step.left:.0f} s left  "
        said = f"{left}{step.artefact} ({step.source})"
        self._bar.update(self._task, total=step.of, completed=step.n, description=said)

    def close(self) -> None:
        self._bar.stop()


def display(stream: TextIO) -> Display:
    """A bar on a terminal, else lines."""
    return Bar(stream) if stream.isatty() else Lines(stream)


class Recorder:
    """Keeps the newest state where others can read it, by `write(content)`, once a second at most.

    It writes on a thread of its own: a warm-up does not wait for a slow volume. After a `write`
    that gives False it writes no more.
    """

    def __init__(self, write: Callable[[bytes], bool], every: float = _EVERY) -> None:
        self._write = write
        self._every = every
        self._newest: Mapping[str, Any] | None = None
        self._changed = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def put(self, state: Mapping[str, Any]) -> None:
        self._newest = state
        self._changed.set()

    def close(self, timeout: float) -> None:
        """Write what is not written yet, for `timeout` seconds at the most."""
        self._ends.set()
        self._changed.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        written: Mapping[str, Any] | None = None
        while True:
            self._changed.wait()
            self._changed.clear()
            state = self._newest
            if state is not written and not self._write(json.dumps(state).encode()):
                return
            written = state
            if self._ends.wait(self._every) and self._newest is written:
                return


class Progress:
    """Counts artefacts as they come, of `of` in all, and tells `show` and the recorder.

    Leaving the context ends both.

    Args:
        stages: those that the artefacts are for.
    """

    def __init__(self, of: int, show: Display, producer: str, stages: Sequence[int]) -> None:
        self._of = of
        self._stages = tuple(stages)
        self._show = show
        self._producer = producer
        self._begun = time.monotonic()
        self._took: list[float] = []
        self._workers = 0
        self._left: float | None = None
        self._recorder: Recorder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show.close()
        if self._recorder:
            self._record("failed" if error else "done")
            self._recorder.close(timeout=30)

    def begin(self, workers: int, recorder: Recorder) -> None:
        """What was not there is compiled from now on."""
        self._workers, self._recorder = workers, recorder
        self._left = self._estimate()
        self._record("compiling")

    def came(self, artefact: str, seconds: float, source: Source) -> None:
        """`artefact` has come. While only those that are there are counted, nobody knows how many
        others there will be, so that no time is foretold."""
        self._took.append(seconds)
        self._left = self._estimate() if self._workers else None
        left = None if self._left is None else round(self._left, 1)
        came, took = len(self._took), round(seconds, 3)
        self._show.show(Step(artefact, came, self._of, took, left, source, self._stages))
        self._record("compiling")

    def _estimate(self) -> float | None:
        return seconds_left(self._of - len(self._took), self._took, self._workers)

    def _record(self, state: str) -> None:
        if self._recorder:
            self._recorder.put(
                {
                    "state": state,
                    "n": len(self._took),
                    "of": self._of,
                    "left": None if self._left is None else round(self._left, 1),
                    "seconds": round(time.monotonic() - self._begun, 1),
                    "workers": self._workers,
                    "producer": self._producer,
                }
            )
