"""The artefacts below one folder: on the shared volume, or in the pod's own.

An artefact appears by one rename, so that a reader sees all of it or nothing. Every operation goes
through the `Files` that it is given, whose faults say which of the two places refused.
"""

import errno
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pds_kernels.cache import seal
from pds_kernels.cache.files import FileFault, Files

T = TypeVar("T")
STALE_SECONDS = 3600.0
"""A scratch folder that has not changed for so long has no maker any more."""
OTHERS = frozenset({"tmp", "locks", "manifests"})
"""Folders beside those of kinds."""
_TRIES = 10
_PAUSE = 0.05


class Damaged(Exception):
    """An artefact is there, and is not what was sealed."""


class Missing(Damaged):
    """A part of it is not there: not yet, perhaps, or it was taken away while it was read."""


@dataclass(frozen=True, slots=True)
class Item:
    """A sealed artefact; the digests of its files are still to be checked."""

    folder: Path
    meta: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return float(self.meta["seconds"])

    @property
    def files(self) -> Mapping[str, str]:
        files: Mapping[str, str] = self.meta["files"]
        return files

    def content(self, files: Files, name: str) -> Iterator[bytes]:
        """The file `name`, piece by piece. Raises Damaged at its end if it was another."""
        digest = hashlib.sha256()
        try:
            for chunk in files.chunks(self.folder / name):
                digest.update(chunk)
                yield chunk
        except FileFault as fault:
            if fault.files is files and fault.absent:
                raise Missing(f"{name} is missing") from fault
            raise
        if digest.hexdigest() != self.files[name]:
            raise Damaged(f"{name} has changed")


class Shelf:
    """The artefacts below `root`, sealed by `secret`. The place may show names that others have
    made `late` seconds after they were made."""

    def __init__(self, root: Path, secret: bytes, late: float = 0.0) -> None:
        self.root = root
        self.scratch = root / "tmp"
        self._secret = secret
        self._late = late

    def folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def find(self, files: Files, kind: str, key: str) -> Item | None:
        """The artefact `key`, if there is one.

        Raises:
            Damaged: there is one that is unfinished, was changed, or has a stranger's seal.
        """
        return self.patiently(lambda: self._find(files, kind, key))

    def patiently(self, work: Callable[[], T]) -> T:
        """What `work` gives, which may raise Missing as long as names may be late."""
        end = None
        while True:
            try:
                return work()
            except Missing:
                end = end or time.monotonic() + self._late
                if time.monotonic() >= end:
                    raise
            time.sleep(_PAUSE)

    def _find(self, files: Files, kind: str, key: str) -> Item | None:
        folder = self.folder(kind, key)
        if not files.exists(folder):
            return None
        try:
            if not files.exists(folder / seal.COMMITTED):
                raise Missing("it is unfinished")
            meta = seal.opened(files.read(folder / seal.META), self._secret, key)
            names = set(files.tree(folder)) - seal.MARKS
        except FileFault as fault:
            if fault.absent:
                raise Missing(f"{fault.path.name} is missing") from fault
            raise
        if meta is None:
            raise Damaged(f"{seal.META} has no valid seal")
        if names != set(meta["files"]):
            odd = sorted(names ^ set(meta["files"]))
            if odd[0] in meta["files"]:
                raise Missing(f"{odd[0]} is missing")
            raise Damaged(f"{odd[0]} is a stranger")
        return Item(folder, meta)

    def check(self, files: Files, kind: str, key: str) -> Item | None:
        """As `find`, after reading the whole artefact. Raises Damaged as well if it has changed."""

        def check() -> Item | None:
            item = self._find(files, kind, key)
            for name in item.files if item else ():
                for _ in item.content(files, name) if item else ():
                    pass
            return item

        return self.patiently(check)

    def put(
        self,
        files: Files,
        kind: str,
        key: str,
        meta: Mapping[str, Any],
        content: Callable[[str], Iterable[bytes]],
    ) -> Item:
        """Make the artefact of `meta` from what `content(name)` gives for each of its files.

        If `content` raises, nothing half made is left.
        """
        scratch = self.new_scratch(files)
        folders = {(scratch / name).parent for name in meta["files"]} - {scratch}
        try:
            for folder in sorted(folders):
                files.make_folder(folder)
            for name in meta["files"]:
                files.write(scratch / name, content(name))
            for folder in folders:
                files.sync(folder)
            return self.commit(files, scratch, kind, key, meta)
        finally:
            with suppress(FileFault):
                files.remove(scratch)

    def new_scratch(self, files: Files) -> Path:
        scratch = self.scratch / uuid.uuid4().hex
        files.make_folder(scratch)
        return scratch

    def commit(
        self, files: Files, scratch: Path, kind: str, key: str, meta: Mapping[str, Any]
    ) -> Item:
        """Seal what lies in `scratch` and move it to its place; one that came first stays."""
        files.write(scratch / seal.META, [seal.sealed(meta, self._secret)])
        files.write(scratch / seal.COMMITTED, [])
        files.sync(scratch)
        folder = self.folder(kind, key)
        files.make_folder(folder.parent)
        tries = 0
        while True:
            tries += 1
            try:
                files.rename(scratch, folder)
                return Item(folder, meta)
            except FileFault as fault:
                taken = fault.number in (errno.EEXIST, errno.ENOTEMPTY)
                if not taken or tries == _TRIES:
                    raise
            try:
                item = self.check(files, kind, key)
            except Damaged:
                self.discard(files, kind, key)
                continue
            if item is not None:
                return item
            time.sleep(_PAUSE)  # the name is taken, and not visible yet

    def discard(self, files: Files, kind: str, key: str) -> None:
        """Take the artefact `key` away: at once, where there is room for another name."""
        folder, aside = self.folder(kind, key), self.scratch / uuid.uuid4().hex
        try:
            files.make_folder(self.scratch)
            files.rename(folder, aside)
        except FileFault:
            files.remove(folder)
            return
        with suppress(FileFault):  # it is in nobody's way there, and swept when it is old
            files.remove(aside)

    def sweep(self, files: Files) -> None:
        """Remove what makers that were killed have left; ages by the place's own clock."""
        if not files.exists(self.scratch):
            return
        files.touch(self.scratch)
        now = files.modified(self.scratch)
        for name in files.names(self.scratch):
            with suppress(FileFault):  # another may sweep too
                if now - files.modified(self.scratch / name) > STALE_SECONDS:
                    files.remove(self.scratch / name)
