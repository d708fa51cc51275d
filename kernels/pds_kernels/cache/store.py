"""Finding, building, publishing, checking and pruning artefacts."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pds_kernels.cache import seal
from pds_kernels.cache.flight import Flight

VERSION = "v1"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def cache_key(inputs: Mapping[str, str]) -> str:
    """The digest of everything that decides an artefact, as 64 hexadecimal digits."""
    text = json.dumps(dict(inputs), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Artefact:
    """A verified artefact, ready to be loaded from `folder`."""

    key: str
    folder: Path
    built: bool
    """This process compiled it; else it was found, or another process's build was awaited."""
    shared: bool
    """It lies in the cache; False where the volume could not be written."""
    seconds: float
    """Of compilation, by whoever compiled it."""
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of `pds-engine cache ls`."""

    kind: str
    key: str
    bytes: int
    seconds: float
    intact: bool
    used: float
    """Seconds since the epoch of the last use."""


class Cache:
    """The artefacts under `root`, sealed by `secret`. Any number of processes may share it."""

    def __init__(
        self, root: Path, secret: bytes, *, lease: float = 20.0, producer: str = ""
    ) -> None:
        self.root = root / VERSION
        self._secret = hmac_key(secret)
        self._seal = hashlib.sha256(self._secret).hexdigest()[:16]
        self._lease = lease
        self._producer = producer

    def find(self, kind: str, inputs: Mapping[str, str]) -> Artefact | None:
        """The intact artefact of these inputs, or None."""
        key = self._key(inputs)
        folder = self._folder(kind, key)
        meta = seal.opened(folder, self._secret)
        if meta is None:
            return None
        _touch(folder / seal.COMMITTED)
        return Artefact(key, folder, False, True, float(meta["seconds"]), _digest(meta["files"]))

    def get(
        self,
        kind: str,
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
        *,
        timeout: float = 1800,
    ) -> Artefact:
        """The artefact of these inputs, compiled by `build(folder)` where nobody has yet.

        At most one process of all that share the volume builds a key at a time. Where the volume
        cannot be written the artefact is built in a private folder, and `shared` is False.

        Raises:
            TimeoutError: another process holds the key and delivers nothing within `timeout` s.
            Exception: whatever `build` raises; nothing is published then.
        """
        found = self.find(kind, inputs)
        if found:
            return found
        key = self._key(inputs)
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            flight = Flight(self.root / "locks" / key, self._lease)
            mine = flight.acquire(lambda: self.find(kind, inputs) is not None, timeout)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return self._private(key, build)
        try:
            if mine:
                return self._build(kind, key, inputs, build)
        finally:
            flight.release()
        arrived = self.find(kind, inputs)
        return arrived or self.get(kind, inputs, build, timeout=timeout)

    def entries(self) -> Iterator[Entry]:
        """Every artefact under our seal, damaged ones too; those of another secret are not ours."""
        for marker in sorted(self.root.glob(f"*/??/*/{seal.COMMITTED}")):
            folder = marker.parent
            if seal.key_of(folder) not in ("", self._seal):
                continue
            meta = seal.opened(folder, self._secret)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            seconds = float(meta["seconds"]) if meta else 0.0
            kind = folder.parent.parent.name
            yield Entry(kind, folder.name, size, seconds, bool(meta), marker.stat().st_mtime)

    def prune(self, *, unused_for: float, now: float) -> list[Entry]:
        """Remove what is damaged or was unused for `unused_for` seconds at `now`; and leftovers."""
        for leftover in (self.root / "tmp").glob("*"):
            if now - leftover.stat().st_mtime > max(unused_for, 3600):
                shutil.rmtree(leftover, ignore_errors=True)
        gone = [e for e in self.entries() if not e.intact or now - e.used > unused_for]
        for entry in gone:
            shutil.rmtree(self._folder(entry.kind, entry.key))
        return gone

    def _key(self, inputs: Mapping[str, str]) -> str:
        """Holders of different secrets keep apart: neither may run what the other has compiled."""
        return cache_key({**inputs, "seal": self._seal})

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def _build(
        self, kind: str, key: str, inputs: Mapping[str, str], build: Callable[[Path], None]
    ) -> Artefact:
        scratch = self.root / "tmp" / uuid.uuid4().hex
        try:
            scratch.mkdir(parents=True)
            started = time.monotonic()
            build(scratch)
            seconds = time.monotonic() - started
            files = seal.digests(scratch)
            meta = {
                "inputs": dict(inputs),
                "seal_key": self._seal,
                "files": files,
                "seconds": round(seconds, 3),
                "producer": self._producer,
            }
            (scratch / seal.META).write_text(seal.sealed(meta, self._secret))
            (scratch / seal.COMMITTED).touch()
            _sync(scratch)
            folder = self._publish(scratch, self._folder(kind, key))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return self._private(key, build)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Artefact(key, folder, True, True, seconds, _digest(files))

    def _publish(self, scratch: Path, folder: Path) -> Path:
        """Move `scratch` to its place; an intact artefact that came first stays."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                scratch.rename(folder)
                return folder
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            if seal.opened(folder, self._secret) is not None:
                return folder
            damaged = self.root / "tmp" / uuid.uuid4().hex
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)

    def _private(self, key: str, build: Callable[[Path], None]) -> Artefact:
        folder = Path(tempfile.mkdtemp(prefix="pds-cache-"))
        started = time.monotonic()
        build(folder)
        seconds = time.monotonic() - started
        return Artefact(key, folder, True, False, seconds, _digest(seal.digests(folder)))


def hmac_key(secret: bytes) -> bytes:
    """The cache's own key, from a secret that serves other purposes too."""
    return hashlib.sha256(b"pdserving compile cache\0" + secret).digest()


def _digest(files: Mapping[str, str]) -> str:
    return cache_key(files)


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        return  # a read-only volume: only `prune` would want to know


def _sync(folder: Path) -> None:
    """Flush the files and then the folder: a rename must never expose an empty file."""
    for path in [*folder.rglob("*"), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
