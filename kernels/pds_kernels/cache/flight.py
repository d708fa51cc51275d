"""Single flight over a shared file system: one process builds a key, the others wait for it.

A lock is a file made with O_EXCL. Its holder rewrites it as a heartbeat; a waiter that sees no beat
for `lease` seconds of its own monotonic clock takes the lock over. No clocks are compared between
machines, and no pid is trusted: a pid means nothing in another pod. Should two processes build all
the same (a holder stopped for longer than the lease), the rename that publishes lets one win.
"""

import errno
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pds_kernels.cache.files import FileFault, Files
from pds_kernels.cache.trouble import Trouble
from pds_kernels.cache.volume import Volume

T = TypeVar("T")


class Flight:
    """The lock file `name` of `volume`. Use `acquire`, then `release`."""

    def __init__(self, volume: Volume, name: str, lease: float) -> None:
        self._volume = volume
        self._path = volume.locks / name
        self._lease = lease
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self, arrived: Callable[[], T | None], timeout: float) -> T | None:
        """None: this process builds. Else what `arrived` gave while waiting.

        Raises:
            Trouble: another process holds the lock for `timeout` seconds, or the volume refuses.
        """
        seen, since = b"", time.monotonic()
        deadline = since + timeout
        pause = 0.01
        while (found := arrived()) is None:
            if self._volume.write(self._create):
                self._beating = threading.Thread(target=self._beat, name="cache-lease", daemon=True)
                self._beating.start()
                try:  # it may have been published between our look and our lock
                    found = arrived()
                except BaseException:
                    self.release()
                    raise
                if found is not None:
                    self.release()
                return found
            now = time.monotonic()
            state = self._volume.read(self._state)
            if state != seen:
                seen, since = state, now
            elif now - since > self._lease:
                self._volume.write(partial(self._evict, stale=seen))
            if now > deadline:
                raise self._volume.held(timeout, self._path)
            self._stop.wait(pause)
            pause = min(pause * 1.5, 0.25)
        return found

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours."""
        self._stop.set()
        if self._beating:
            self._beating.join(self._lease)  # which a volume that hangs would not let end
        self._volume.tidy(self._remove)

    def _create(self, files: Files) -> bool:
        try:
            files.write(self._path, [self._content(0)])
        except FileFault as fault:
            if fault.number == errno.EEXIST:
                return False
            if fault.operation != "make":  # an empty lock would make the next one wait
                with suppress(FileFault):
                    files.remove(self._path)
            raise
        return True

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._lease / 4):
            beats += 1
            try:
                if not self._volume.read(partial(self._renew, content=self._content(beats))):
                    return  # taken over while we were stopped: the publisher's rename decides
            except Trouble:
                return  # which only brings the take-over nearer

    def _renew(self, files: Files, content: bytes) -> bool:
        """In its own place: a volume that is full since keeps the lock."""
        if not self._ours(files):
            return False
        with suppress(FileFault):
            files.overwrite(self._path, content)
        return True

    def _remove(self, files: Files) -> None:
        if self._ours(files):
            files.remove(self._path)

    def _evict(self, files: Files, stale: bytes) -> None:
        """Remove the lock whose content is `stale`; restore one that has just changed."""
        aside = self._path.with_name(f"{self._path.name}.{self._token}")
        try:
            files.rename(self._path, aside)
        except FileFault as fault:
            if fault.absent:
                return
            raise
        if _read(files, aside) != stale:
            with suppress(FileFault):  # another has made one meanwhile
                files.link(aside, self._path)
        files.remove(aside)

    def _state(self, files: Files) -> bytes:
        return _read(files, self._path)

    def _ours(self, files: Files) -> bool:
        return _read(files, self._path).startswith(self._token.encode())

    def _content(self, beats: int) -> bytes:
        return f"{self._token} {beats:010}".encode()


def _read(files: Files, path: Path) -> bytes:
    try:
        return files.read(path)
    except FileFault as fault:
        if fault.absent:
            return b""
        raise
