"""Operations on files, one by one: the edge at which a volume refuses, hangs, or has vanished.

Everything that the cache does to a place goes through a `Files`, which says what it is doing and
where an error came from. So what fails on the volume is never taken for a fault of the pod's own
folder, nor of a compiler.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_UNSYNCED = (errno.EINVAL, errno.ENOTSUP)
"""Of file systems that cannot flush a folder."""


class FileFault(Exception):
    """An operation on `path` failed with `error`. `files` says in which place."""

    def __init__(self, files: "Files", operation: str, path: Path, error: OSError) -> None:
        super().__init__(f"cannot {operation} {path}: {error.strerror or error}")
        self.files = files
        self.operation = operation
        self.path = path
        self.number = error.errno or 0

    @property
    def absent(self) -> bool:
        return self.number in _ABSENT


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes and files that a file system can take; zero in all: it does not say."""

    free: int
    total: int
    free_files: int
    files: int


class Files:
    """The operations. All raise FileFault where the system refuses."""

    def __init__(self) -> None:
        self.doing = ("", Path())
        self.since = time.monotonic()

    def begin(self, operation: str, path: Path) -> None:
        """What comes next. Tests refuse here, or hang."""

    @contextlib.contextmanager
    def _run(self, operation: str, path: Path) -> Iterator[None]:
        self.doing, self.since = (operation, path), time.monotonic()
        try:
            self.begin(operation, path)
            yield
        except OSError as error:
            raise FileFault(self, operation, path, error) from error

    def exists(self, path: Path) -> bool:
        with self._run("look for", path):
            try:
                os.stat(path)
            except OSError as error:
                if error.errno in _ABSENT:
                    return False
                raise
        return True

    def names(self, folder: Path) -> list[str]:
        """The names in `folder`, sorted; none where it is absent."""
        with self._run("list", folder):
            try:
                return sorted(os.listdir(folder))
            except OSError as error:
                if error.errno in _ABSENT:
                    return []
                raise

    def tree(self, folder: Path) -> list[str]:
        """The files below `folder`, by their relative names."""
        found: list[str] = []

        def refused(error: OSError) -> None:
            raise error

        with self._run("list", folder):
            for parent, _, names in os.walk(folder, onerror=refused):
                found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
        return sorted(found)

    def read(self, path: Path, limit: int = CHUNK) -> bytes:
        """The first `limit` bytes."""
        with self._run("read", path), path.open("rb") as file:
            return file.read(limit)

    def chunks(self, path: Path) -> Iterator[bytes]:
        with self._run("read", path):
            fd = os.open(path, os.O_RDONLY)
        try:
            while True:
                with self._run("read", path):
                    chunk = os.read(fd, CHUNK)
                if not chunk:
                    return
                yield chunk
        finally:
            os.close(fd)

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Make `path`, which must not be there, and flush it."""
        with self._run("make", path):
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o664)
        try:
            for chunk in chunks:
                with self._run("write", path):
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
            with self._run("flush", path):
                os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        with self._run("close", path):  # where NFS reports that a disk is full
            os.close(fd)

    def overwrite(self, path: Path, content: bytes) -> None:
        """Write over the beginning of `path`, which is never shorter than it was meanwhile."""
        with self._run("write", path):
            fd = os.open(path, os.O_WRONLY)
            try:
                os.pwrite(fd, content, 0)
            finally:
                os.close(fd)

    def sync(self, folder: Path) -> None:
        """Flush the names in `folder`: a rename must never expose an empty file."""
        with self._run("flush", folder):
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            except OSError as error:
                if error.errno not in _UNSYNCED:
                    raise
            finally:
                os.close(fd)

    def make_folder(self, folder: Path) -> None:
        with self._run("make", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        with self._run("rename", source):
            source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        with self._run("link", source):
            os.link(source, target)

    def remove(self, path: Path) -> None:
        """One file, or a folder and all below it; it may be gone already."""
        with self._run("remove", path):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                return

    def touch(self, path: Path) -> None:
        """Its time becomes the file system's own now."""
        with self._run("touch", path):
            os.utime(path)

    def modified(self, path: Path) -> float:
        """Seconds since the epoch, by the file system's clock."""
        with self._run("look for", path):
            return path.stat().st_mtime

    def size(self, path: Path) -> int:
        with self._run("look for", path):
            return path.stat().st_size

    def space(self, folder: Path) -> Space:
        with self._run("measure", folder):
            found = os.statvfs(folder)
        block = found.f_frsize
        return Space(found.f_bavail * block, found.f_blocks * block, found.f_favail, found.f_files)
