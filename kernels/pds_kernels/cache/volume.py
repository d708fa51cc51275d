"""The shared volume: every visit is bounded in time, and every fault becomes words.

A system call on a dead NFS server cannot be interrupted, so each visit runs on a thread of its own,
which is left behind when it does not come back. After that nothing is asked of the volume any more;
one that refuses writes is still read.
"""

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pds_kernels.cache import trouble as words
from pds_kernels.cache.files import FileFault, Files, Space
from pds_kernels.cache.shelf import Shelf
from pds_kernels.cache.trouble import Trouble

T = TypeVar("T")
LEAST_FREE = 1 << 20
"""Bytes. An artefact takes some 400 KiB: with less than this nothing is tried."""
_VISIT = 8
"""A visit of many operations may take so often the time of one."""


class Volume:
    """The volume at `root`. Each operation on it may take `patience` seconds.

    `trouble` is the first that was met; "" while there is none.
    """

    def __init__(
        self, root: Path, shelf: Shelf, patience: float, files: Callable[[], Files]
    ) -> None:
        self.root = root
        self.shelf = shelf
        self.locks = shelf.root / "locks"
        self.trouble = ""
        self._storage = words.volume(root)
        self._patience = patience
        self._files = files
        self._readable = self._writable = True
        self._hangs = False

    def avoid(self, trouble: str) -> None:
        """Do not touch the volume: it is known to be in `trouble`."""
        self.trouble, self._readable, self._writable = trouble, False, False
        self._hangs = True

    def read(self, work: Callable[[Files], T]) -> T:
        """What `work` gives. Raises Trouble; then the volume is not asked any more."""
        if not self._readable:
            raise Trouble(self.trouble)
        try:
            return self._visit(work)
        except Trouble as trouble:
            self._readable = self._writable = False
            self._note(trouble)
            raise

    def write(self, work: Callable[[Files], T]) -> T:
        """What `work` gives. Raises Trouble; then the volume is written no more."""
        if not self._writable:
            raise Trouble(self.trouble)
        try:
            return self._visit(work)
        except Trouble as trouble:
            self._writable = False
            self._note(trouble)
            raise

    def tidy(self, work: Callable[[Files], object]) -> None:
        """Try to remove what we have left there, unless a visit hangs."""
        if not self._hangs:
            with suppress(Trouble):
                self._visit(work)

    def record(self, work: Callable[[Files], object]) -> bool:
        """Write something that nothing depends on; whether it was written. No trouble is noted."""
        if not self._writable or self._hangs:
            return False
        with suppress(Trouble):
            self._visit(work)
            return True
        return False

    def try_out(self) -> None:
        """Raises Trouble where the volume would not take an artefact, as far as a trial shows."""

        def work(files: Files) -> None:
            for folder in (self.locks, self.shelf.scratch):
                files.make_folder(folder)
            self.shelf.sweep(files)
            self._room(files, LEAST_FREE)
            probe = self.shelf.new_scratch(files)
            try:
                files.write(probe / "probe", [bytes(4096)])
            finally:
                files.remove(probe)

        self.write(work)

    def need(self, files: Files, size: int) -> None:
        """Raises Trouble if there is less room than `size` bytes. To be called within a visit."""
        self._room(files, size)

    def held(self, seconds: float, lock: Path) -> Trouble:
        """The trouble of a lock that another process keeps for so long."""
        trouble = Trouble(words.held(self._storage, seconds, lock))
        self._note(trouble)
        return trouble

    def _note(self, trouble: Trouble) -> None:
        self.trouble = self.trouble or str(trouble)

    def _room(self, files: Files, size: int) -> None:
        space = files.space(self.root)
        if space.total and space.free < size:
            raise Trouble(words.full(self._storage, space, asked=size))

    def _visit(self, work: Callable[[Files], T]) -> T:
        files = self._files()
        try:
            return self._bounded(work, files)
        except FileFault as fault:
            if fault.files is not files:
                raise  # of the pod's own folder
            raise Trouble(self._words(fault)) from fault

    def _bounded(self, work: Callable[[Files], T], files: Files) -> T:
        result: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result.set_result(work(files))
            except BaseException as error:  # handed to whoever waits
                result.set_exception(error)

        threading.Thread(target=run, name="cache-volume", daemon=True).start()
        self._await(result, files)
        return result.result()

    def _await(self, result: "concurrent.futures.Future[T]", files: Files) -> None:
        end = time.monotonic() + _VISIT * self._patience
        while not result.done():
            due = min(end, files.since + self._patience)
            left = due - time.monotonic()
            if left <= 0:
                operation, path = files.doing
                said = f"{operation} {self._short(path)}"
                self._hangs = True
                raise Trouble(words.slow(self._storage, self._patience, said))
            concurrent.futures.wait([result], left)

    def _words(self, fault: FileFault) -> str:
        doing = f"{fault.operation} {self._short(fault.path)}"
        space = self._space() if fault.number in words.FULL else None
        return words.refused(self._storage, fault.number, doing, space, os.geteuid())

    def _space(self) -> Space | None:
        with suppress(Trouble, FileFault):
            return self._bounded(lambda files: files.space(self.root), self._files())
        return None

    def _short(self, path: Path) -> Path:
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path
