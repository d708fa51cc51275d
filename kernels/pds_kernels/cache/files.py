"""Operations on files, one by one: the edge at which a volume refuses, hangs, or has vanished.

Everything that the cache does to a place goes through a `Files`, which says what it is doing and
where an error came from. So what fails on the volume is never taken for a fault of the pod's own
folder, nor of a compiler.

Network file systems show the work of others late (triton #11512, DeepEP #683). A client of NFS
remembers for up to a minute that it has looked for a name in vain; that mkdir and O_EXCL fail with
EEXIST is the server's word all the same. Opening the folder makes the client ask again
(close-to-open consistency, RFC 7530 10.3). A file that was removed while it was open gives ESTALE,
and a folder with such a file in it EBUSY. None of these is a fault of the volume.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CHUNK = 1 << 20
LATE_SECONDS = 0.5
"""How long a name is looked for that must be there. One that is later costs another build."""
_PAUSE = 0.02
_TRIES = 3
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_BUSY = (errno.EBUSY, errno.ENOTEMPTY)
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
        """It is not there, or was removed while it was read."""
        return self.number in (*_ABSENT, errno.ESTALE)


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
            return _there(path) or (_asked_again(path) and _there(path))

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
        """The first `limit` bytes, of what lies there now where another was replaced."""
        with self._run("read", path):
            for left in reversed(range(_TRIES)):
                try:
                    with path.open("rb") as file:
                        return file.read(limit)
                except OSError as error:
                    if error.errno != errno.ESTALE or not left:
                        raise
        return b""

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
            fd = _late(lambda: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o664), path)
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

    def overwrite(self, path: Path, begins: bytes, content: bytes) -> bool:
        """Write over the beginning of `path`, which is never shorter than it was meanwhile; whether
        it began with `begins`. If not, another has taken its place, and it is left alone."""
        with self._run("write", path):
            fd = os.open(path, os.O_RDWR)
            try:
                ours = os.pread(fd, len(begins), 0) == begins
                if ours:
                    os.pwrite(fd, content, 0)
                return ours
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
        """And those around it; they may be there already."""
        with self._run("make", folder):
            _make(folder)

    def rename(self, source: Path, target: Path) -> None:
        def rename() -> None:
            try:
                source.rename(target)
            except FileNotFoundError as error:  # which of the two is it?
                if not _there(source):
                    raise _Absent(*error.args) from None
                raise

        with self._run("rename", source):
            _late(rename, target)

    def link(self, source: Path, target: Path) -> None:
        with self._run("link", source):
            os.link(source, target)

    def remove(self, path: Path) -> None:
        """One file, or a folder and all below it; it may be gone already.

        Folders that are busy stay: those in the making are swept when they are old.
        """
        with self._run("remove", path):
            for _ in range(_TRIES):
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                except FileNotFoundError:
                    return
                except OSError as error:
                    if error.errno not in _BUSY:
                        raise
                    time.sleep(_PAUSE)
                else:
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
            return path.lstat().st_size

    def space(self, folder: Path) -> Space:
        with self._run("measure", folder):
            found = os.statvfs(folder)
        block = found.f_frsize
        return Space(found.f_bavail * block, found.f_blocks * block, found.f_favail, found.f_files)


class _Absent(FileNotFoundError):
    """What is to be renamed is not there: no use in waiting."""


def _there(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def _asked_again(path: Path) -> bool:
    """Make a client of NFS ask the server for `path` when it is looked for next; whether there is
    a folder to look in."""
    folder = path.parent
    for tried in (False, True):
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
            return True
        except OSError:
            if tried or folder == folder.parent or not _asked_again(folder):
                return False
    return False


def _late(work: Callable[[], T], path: Path) -> T:
    """What `work` gives. It makes `path` in a folder that is there: an ENOENT may be early."""
    end = time.monotonic() + LATE_SECONDS
    while True:
        try:
            return work()
        except _Absent:
            raise
        except FileNotFoundError:
            if time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
        _asked_again(path)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        return  # is_dir() may not know yet, so that mkdir(exist_ok=True) would raise
    except FileNotFoundError:
        if folder == folder.parent:
            raise
        _make(folder.parent)
        with contextlib.suppress(FileExistsError):
            _late(folder.mkdir, folder)
    except OSError:  # some servers look at rights, and whether there is room, before all else
        if not folder.is_dir():
            raise
