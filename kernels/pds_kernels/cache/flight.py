"""Single flight over a shared file system: one process builds a key, the others leave it alone.

A lock is a file made with O_EXCL. Its holder rewrites it as a heartbeat; whoever sees no beat for a
lease of its own monotonic clock (`sharing.Watch`) evicts the lock. No clocks are compared between
machines, and no pid is trusted: a pid means nothing in another pod. Should two processes build all
the same (a holder stopped for longer than the lease), the rename that publishes lets one win.

A holder that has published leaves its lock there, and says so in it. A process that does not see
the artefact yet, as on NFS, would otherwise find no lock either, and build it once more.
"""

import errno
import threading
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

from pds_kernels.cache.files import FileFault, Files
from pds_kernels.cache.trouble import Trouble
from pds_kernels.cache.volume import Volume

_PUBLISHED = "published."
"""As long as a beat."""


def published(beat: bytes) -> bool:
    """Whether the holder of a lock that holds `beat` has put the artefact on the volume."""
    return beat.endswith(_PUBLISHED.encode())


class Flight:
    """The lock file `name` of `volume`. Use `attempt`, and where that gives True, `release`."""

    def __init__(self, volume: Volume, name: str, lease: float) -> None:
        self.path = volume.locks / name
        self._volume = volume
        self._lease = lease
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def attempt(self, stale: bytes | None = None) -> bool:
        """Take the lock unless another process holds it; whether it is ours now. Does not wait.

        `stale` is what the lock held when its holder was given up: such a lock is evicted first.

        Raises:
            Trouble: the volume refuses.
        """
        if stale is not None:
            self._volume.write(partial(self._evict, stale=stale))
        if not self._volume.write(self._create):
            return False
        self._beating = threading.Thread(target=self._beat, name="cache-lease", daemon=True)
        self._beating.start()
        return True

    def beat(self) -> bytes:
        """What the lock holds, another at each beat of its holder; empty where there is none.

        Raises:
            Trouble: the volume cannot be read.
        """
        return self._volume.read(self._state)

    def release(self, *, published: bool = False) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours; or mark it, if the artefact
        is `published`."""
        self._stop.set()
        if self._beating:
            self._beating.join(self._lease)  # which a volume that hangs would not let end
        mark = partial(self._renew, content=self._content(_PUBLISHED))
        self._volume.tidy(mark if published else self._remove)

    def forget(self) -> None:
        """Remove the lock of an artefact that was published and is no more.

        Raises:
            Trouble: the volume refuses.
        """
        beat = self.beat()
        if published(beat):
            self._volume.write(partial(self._evict, stale=beat))

    def _create(self, files: Files) -> bool:
        try:
            files.write(self.path, [self._content(f"{0:010}")])
        except FileFault as fault:
            if fault.number == errno.EEXIST:
                return False
            if fault.operation != "make":  # an empty lock would make the next one wait
                with suppress(FileFault):
                    files.remove(self.path)
            raise
        return True

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._lease / 4):
            beats += 1
            try:
                renew = partial(self._renew, content=self._content(f"{beats:010}"))
                if not self._volume.read(renew):
                    return  # taken over while we were stopped: the publisher's rename decides
            except Trouble:
                return  # which only brings the take-over nearer

    def _renew(self, files: Files, content: bytes) -> bool:
        """In its own place: a volume that is full since keeps the lock."""
        try:
            return files.overwrite(self.path, self._token.encode(), content)
        except FileFault as fault:
            return not fault.absent

    def _remove(self, files: Files) -> None:
        if self._ours(files):
            files.remove(self.path)

    def _evict(self, files: Files, stale: bytes) -> None:
        """Remove the lock whose content is `stale`; restore one that has just changed.

        One that has beaten since is not moved to find that out: meanwhile another process would
        find no lock, and its holder would take itself for evicted and beat no more.
        """
        if _read(files, self.path) != stale:
            return
        aside = self.path.with_name(f"{self.path.name}.{self._token}")
        try:
            files.rename(self.path, aside)
        except FileFault as fault:
            if fault.absent:
                return
            raise
        if _read(files, aside) != stale:
            with suppress(FileFault):  # another has made one meanwhile
                files.link(aside, self.path)
        files.remove(aside)

    def _state(self, files: Files) -> bytes:
        return _read(files, self.path)

    def _ours(self, files: Files) -> bool:
        return _read(files, self.path).startswith(self._token.encode())

    def _content(self, said: str) -> bytes:
        return f"{self._token} {said}".encode()


def _read(files: Files, path: Path) -> bytes:
    try:
        return files.read(path)
    except FileFault as fault:
        if fault.absent:
            return b""
        raise
