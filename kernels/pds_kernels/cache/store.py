"""Finding, building and sharing artefacts: on the volume, and in the pod's own folder.

Processes always run a private copy, which was checked while it was copied. So a build that fails is
never taken for a fault of the volume, nor the other way round. Once an artefact is found, the
volume may vanish.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pds_kernels.cache import seal
from pds_kernels.cache import trouble as words
from pds_kernels.cache.files import LATE_SECONDS, FileFault, Files
from pds_kernels.cache.flight import Flight, published
from pds_kernels.cache.sharing import Watch
from pds_kernels.cache.shelf import Damaged, Item, Shelf
from pds_kernels.cache.trouble import PlaceError, Trouble
from pds_kernels.cache.volume import LEAST_FREE, Volume

VERSION = "v1"
_PAUSE = 0.25
"""Seconds between two looks at a key that another process builds; shorter at first."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A verified artefact, ready to be loaded from `folder`, which is the pod's own."""

    kind: str
    key: str
    folder: Path
    built: bool
    """This process compiled it; else it was found, or another process's build was awaited."""
    shared: bool
    """It is known to lie on the volume."""
    seconds: float
    """Of compilation, by whoever compiled it."""


@dataclass(frozen=True, slots=True)
class Held:
    """Another process builds the key now, or has published it and it is not visible yet."""

    beat: bytes
    """What its lock holds, another at each beat of its holder."""


class Cache:
    """The artefacts on the volume `root`, with copies in `private`, sealed by `secret`.

    Any number of processes may share either. `patience` is how long an operation on the volume may
    take, and `lease` how long a lock lives without a beat, both in seconds.
    """

    def __init__(
        self,
        root: Path,
        private: Path,
        secret: bytes,
        *,
        lease: float = 20.0,
        patience: float = 15.0,
        producer: str = "",
        files: Callable[[], Files] = Files,
    ) -> None:
        self._secret = hmac_key(secret)
        self.seal_key = hashlib.sha256(self._secret).hexdigest()[:16]
        shelf = Shelf(root / VERSION, self._secret, LATE_SECONDS)
        self.volume = Volume(root, shelf, patience, files)
        self.damage: dict[str, str] = {}
        """What was wrong with artefacts that were found, by key."""
        self.private = private
        """The pod's own folder."""
        self._private = Shelf(private / VERSION, self._secret)
        self._files = Files()
        self.lease = lease
        self._tried_out = False
        self._producer = producer

    def key(self, inputs: Mapping[str, str]) -> str:
        """Holders of different secrets keep apart: neither may run what the other has compiled."""
        return seal.cache_key(inputs, self.seal_key)

    def find(self, kind: str, inputs: Mapping[str, str]) -> Artefact | None:
        """The intact artefact of these inputs, from the pod's own folder or the volume, or None.

        Raises:
            PlaceError: the pod's own folder takes nothing.
        """
        key = self.key(inputs)
        return self._own(kind, key) or self._fetched(kind, key)

    def attempt(
        self,
        kind: str,
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
        *,
        stale: bytes | None = None,
    ) -> Artefact | Held:
        """The artefact, found or compiled by `build(folder)`; or Held, at once, if another does.

        `stale`: what the lock held when its holder was given up (`sharing.Watch`). Where the volume
        cannot be used, or does not take the artefact, `shared` is False, and `volume.trouble` says
        why.

        Raises:
            PlaceError: the pod's own folder takes nothing.
            Exception: whatever `build` raises; nothing is published then.
        """
        found = self.find(kind, inputs)
        if found is not None:
            return found
        key = self.key(inputs)
        flight, made = Flight(self.volume, key, self.lease), None
        try:
            self._try_out()
            if not flight.attempt(stale):
                beat = flight.beat()
                # Its holder has gone: what it has published is what we have found damaged.
                spoilt = key in self.damage and published(beat)
                if not (spoilt and flight.attempt(beat)):
                    return Held(beat)
        except Trouble:
            return self._build(kind, key, inputs, build)
        try:  # it may have been published between our look and our lock
            arrived = self._fetched(kind, key)
            made = arrived or self.share(self._build(kind, key, inputs, build))
            return made
        finally:
            flight.release(published=made is not None and made.shared)

    def build_alone(
        self,
        kind: str,
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
        *,
        waited: float,
    ) -> Artefact:
        """The artefact, compiled for this pod alone after `waited` seconds for a living holder,
        unless it has come at last. `volume.trouble` says so.

        Raises:
            PlaceError, Exception: as `attempt`.
        """
        found = self.find(kind, inputs)
        if found is not None:
            return found
        key = self.key(inputs)
        self.volume.held(waited, self.volume.locks / key)
        return self._build(kind, key, inputs, build)

    def get(
        self,
        kind: str,
        inputs: Mapping[str, str],
        build: Callable[[Path], None],
        *,
        timeout: float = 1800,
    ) -> Artefact:
        """The artefact of these inputs, compiled by `build(folder)` where nobody has yet.

        At most one process of all that share the volume builds a key at a time; the others wait
        for it for half of `timeout` seconds, and then compile for themselves.

        Raises:
            PlaceError, Exception: as `attempt`.
        """
        watch = Watch(self.lease, timeout / 2, time.monotonic())
        stale, pause = None, _PAUSE / 16
        while isinstance(made := self.attempt(kind, inputs, build, stale=stale), Held):
            now = time.monotonic()
            watch.saw(made.beat, now)
            if watch.tired(now):
                return self.build_alone(kind, inputs, build, waited=watch.patience)
            stale = watch.stale(now)
            time.sleep(pause)
            pause = min(pause * 1.5, _PAUSE)
        return made

    def share(self, artefact: Artefact) -> Artefact:
        """Put a copy of `artefact` on the volume, unless there is one."""
        if artefact.shared:
            return artefact
        kind, key, shelf = artefact.kind, artefact.key, self.volume.shelf

        def publish(files: Files) -> None:
            item = self._private.find(self._files, kind, key)
            if item is None:
                raise Damaged("the private copy is gone")
            names = (*item.files, seal.META)
            size = sum(self._files.size(item.folder / name) for name in names)
            self.volume.need(files, max(size, LEAST_FREE))
            shelf.put(files, kind, key, item.meta, lambda name: item.content(self._files, name))

        try:
            if not self._lies_there(kind, key):
                self.volume.write(publish)
        except (Trouble, Damaged):
            return artefact
        except FileFault as fault:
            raise self._place_error(fault) from fault
        return replace(artefact, shared=True)

    def _try_out(self) -> None:
        if not self._tried_out:
            self.volume.try_out()
            self._tried_out = True

    def _lies_there(self, kind: str, key: str) -> bool:
        shelf = self.volume.shelf
        try:
            return self.volume.read(lambda files: shelf.check(files, kind, key)) is not None
        except Damaged:
            return False

    def _own(self, kind: str, key: str) -> Artefact | None:
        """The pod's own copy. One that is damaged is taken away."""
        try:
            try:
                item = self._private.check(self._files, kind, key)
            except Damaged as damage:
                self.damage[key] = str(damage)
                self._private.discard(self._files, kind, key)
                return None
        except FileFault as fault:
            raise self._place_error(fault) from fault
        return None if item is None else _artefact(kind, key, item, shared=False)

    def _fetched(self, kind: str, key: str) -> Artefact | None:
        """A copy of the volume's artefact, made and checked now."""
        shelf = self.volume.shelf

        def copy(files: Files) -> Item | None:
            item = shelf.find(files, kind, key)
            if item is None:
                return None
            own = self._private.put(
                self._files, kind, key, item.meta, lambda name: item.content(files, name)
            )
            with contextlib.suppress(FileFault):  # read-only: only `prune` would want to know
                files.touch(item.folder / seal.COMMITTED)
            return own

        try:
            own = self.volume.read(lambda files: shelf.patiently(lambda: copy(files)))
        except Damaged as damage:
            self.damage[key] = str(damage)
            return None
        except Trouble:
            return None
        except FileFault as fault:
            raise self._place_error(fault) from fault
        return None if own is None else _artefact(kind, key, own, shared=True)

    def _build(
        self, kind: str, key: str, inputs: Mapping[str, str], build: Callable[[Path], None]
    ) -> Artefact:
        """Compile into the pod's own folder, where only this pod can be the cause of a failure."""
        files, own = self._files, self._private
        scratch: Path | None = None
        try:
            scratch = own.new_scratch(files)
            started = time.monotonic()
            build(scratch)
            seconds = time.monotonic() - started
            meta = {
                "inputs": dict(inputs),
                "seal_key": self.seal_key,
                "files": seal.digests(scratch),
                "seconds": round(seconds, 3),
                "producer": self._producer,
            }
            item = own.commit(files, scratch, kind, key, meta)
        except FileFault as fault:
            raise self._place_error(fault) from fault
        except Exception as error:
            space = files.space(own.root)
            if space.total and space.free < LEAST_FREE:  # libraries report a full disk in many ways
                full = words.full(words.private(own.root.parent), space)
                raise PlaceError(f"{full} ({type(error).__name__}: {error})") from error
            raise
        finally:
            if scratch is not None:
                with contextlib.suppress(FileFault):
                    files.remove(scratch)
        return replace(_artefact(kind, key, item, shared=False), built=True)

    def _place_error(self, fault: FileFault) -> PlaceError:
        space = None
        with contextlib.suppress(FileFault):
            space = self._files.space(self._private.root.parent)
        doing, place = f"{fault.operation} {fault.path}", words.private(self._private.root.parent)
        return PlaceError(words.refused(place, fault.number, doing, space, os.geteuid()))


def hmac_key(secret: bytes) -> bytes:
    """The cache's own key, from a secret that serves other purposes too."""
    return hashlib.sha256(b"pdserving compile cache\0" + secret).digest()


def _artefact(kind: str, key: str, item: Item, *, shared: bool) -> Artefact:
    return Artefact(kind, key, item.folder, built=False, shared=shared, seconds=item.seconds)
