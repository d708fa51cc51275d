"""Why a pod's processes end: the notes that they leave, and which of them is the cause.

When one ends, others notice, and end too. One that only noticed may be over sooner than the one
that had the trouble, so that the order in which they end does not say whose fault it was.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LastWords:
    """What a process says of its own end, at a time that all processes of a pod share.

    `at` is of CLOCK_MONOTONIC, in nanoseconds.
    """

    error: str
    at: int

    def write(self, folder: Path, kind: str) -> None:
        """Leave them whole or not at all: the process may be ended meanwhile."""
        part = folder / f"ended-{kind}.part"
        part.write_text(json.dumps({"error": self.error, "at": self.at}))
        part.rename(_path(folder, kind))

    @classmethod
    def now(cls, error: str) -> "LastWords":
        return cls(error, time.monotonic_ns())

    @classmethod
    def read(cls, folder: Path, kind: str) -> "LastWords | None":
        """Those of one process; None where it left none."""
        path = _path(folder, kind)
        return cls(**json.loads(path.read_text())) if path.exists() else None


@dataclass(frozen=True)
class End:
    """The process whose end ended the others. `error` is empty for one that was killed."""

    kind: str
    status: int
    error: str = ""


def cause(first: Mapping[str, int], words: Mapping[str, LastWords]) -> End:
    """Whose end was the cause, by the status of those that ended `first`, at least one, and what
    all processes said.

    One that ended without a word was killed, or crashed: nobody else's end does that. Of all
    others the one that spoke first knows.
    """
    for kind, status in first.items():
        if kind not in words:
            return End(kind, status)
    kind = min(words, key=lambda each: words[each].at)
    return End(kind, first.get(kind, 1), words[kind].error)


def _path(folder: Path, kind: str) -> Path:
    return folder / f"ended-{kind}.json"
