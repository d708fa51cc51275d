"""Single flight over a shared file system: one process builds a key, the others wait for it.

A lock is a file made with O_EXCL. Its holder rewrites it as a heartbeat; a waiter that sees no beat
for `lease` seconds of its own monotonic clock takes the lock over. No clocks are compared between
machines, and no pid is trusted: a pid means nothing in another pod. Should two processes build all
the same (a holder stopped for longer than the lease), the rename that publishes lets one win.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path


class Flight:
    """The lock file `path`. Use `acquire`, then `release`."""

    def __init__(self, path: Path, lease: float) -> None:
        self._path = path
        self._lease = lease
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self, arrived: Callable[[], bool], timeout: float) -> bool:
        """True: this process builds. False: `arrived` came true while waiting.

        Raises:
            TimeoutError: neither happened within `timeout` seconds.
            OSError: the folder of locks cannot be written.
        """
        seen, since = b"", time.monotonic()
        deadline = since + timeout
        pause = 0.01
        while not arrived():
            if self._create():
                if arrived():  # it was published between our look and our lock
                    self.release()
                    return False
                return True
            now = time.monotonic()
            state = _read(self._path)
            if state != seen:
                seen, since = state, now
            elif now - since > self._lease:
                self._evict(seen)
            if now > deadline:
                raise TimeoutError(f"{self._path.name}: no artefact within {timeout:.0f} s")
            self._stop.wait(pause)
            pause = min(pause * 1.5, 0.25)
        return False

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours."""
        self._stop.set()
        if self._beating:
            self._beating.join()
        if _read(self._path).startswith(self._token.encode()):
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o664)
        except FileExistsError:
            return False
        with os.fdopen(fd, "w") as file:
            file.write(f"{self._token} 0")
        self._beating = threading.Thread(target=self._beat, name="cache-lease", daemon=True)
        self._beating.start()
        return True

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._lease / 4):
            if not _read(self._path).startswith(self._token.encode()):
                return  # taken over while we were stopped: the publisher's rename decides
            beats += 1
            with contextlib.suppress(OSError):  # a missed beat only brings the take-over nearer
                self._path.write_text(f"{self._token} {beats}")

    def _evict(self, stale: bytes) -> None:
        """Remove the lock whose content is `stale`; put back one that has just changed."""
        aside = self._path.with_name(f"{self._path.name}.{self._token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        if _read(aside) != stale:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
