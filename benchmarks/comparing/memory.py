"""How much memory a process and its children have, at most; and files that are to be read anew."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL = 0.1


class Watch:
    """Looks at a process and all below it until the end of the `with` block."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._peak = self._own = 0

    def __enter__(self) -> Self:
        self._base = resident([os.getpid()]) if self._pid == os.getpid() else (0, 0)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def told(self) -> dict[str, float]:
        """In GB; without this process's own, where it watches its children."""
        base, base_own = self._base
        return {
            "peak_gb": round((self._peak - base) / 1e9, 3),
            "own_gb": round((self._own - base_own) / 1e9, 3),
        }

    def _watch(self) -> None:
        while True:
            peak, own = resident(below(self._pid))
            self._peak, self._own = max(self._peak, peak), max(self._own, own)
            if self._ended.wait(INTERVAL):
                return


def below(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left.extend(parents.get(found[-1], ()))
    return found


def resident(pids: list[int]) -> tuple[int, int]:
    """Bytes in memory, and those of them that are no file's. A page that two processes share counts
    for both."""
    whole = own = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes = {key: value for key, _, value in (line.partition(":") for line in lines)}
        if "VmRSS" in sizes:
            whole += int(sizes["VmRSS"].split()[0]) << 10
            own += int(sizes["RssAnon"].split()[0]) << 10
    return whole, own


def drop(folder: Path) -> None:
    """Ask the kernel to forget what it has in memory of these files."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
