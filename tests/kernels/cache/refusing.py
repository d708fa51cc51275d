"""A volume that refuses, as seen at the one edge through which the cache touches it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from pds_kernels.cache.files import Files, Space


class Script:
    """Counts the operations on a volume, and has some of them fail.

    `fails(n)` says whether operation n does, counted from 0 over all visits.
    """

    def __init__(self, number: int, fails: Callable[[int], bool] = lambda n: False) -> None:
        self.number = number
        self.fails = fails
        self.seen: list[str] = []
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def __call__(self) -> Files:
        """A `Files` for one visit."""
        return _Refusing(self)

    def step(self, operation: str, path: Path) -> None:
        with self._lock:
            n = len(self.seen)
            self.seen.append(f"{operation} {path.name}")
            if not self.fails(n):
                return
            self.failed.append(operation)
        raise OSError(self.number, os.strerror(self.number), str(path))


class _Refusing(Files):
    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def begin(self, operation: str, path: Path) -> None:
        self._script.step(operation, path)


class Small(Files):
    """A volume of `TOTAL` bytes, where none can be mounted: its model."""

    TOTAL = 64 << 10
    root = Path()

    def space(self, folder: Path) -> Space:
        used = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        return Space(max(0, self.TOTAL - used), self.TOTAL, 100, 100)


class ReadOnly(Files):
    """A volume mounted read-only, where none can be: its model."""

    def begin(self, operation: str, path: Path) -> None:
        if operation not in ("look for", "list", "read", "measure"):
            raise OSError(30, os.strerror(30), str(path))
