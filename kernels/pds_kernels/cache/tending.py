"""Looking after a volume: what lies there, what is damaged, and what may go."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pds_kernels.cache import seal
from pds_kernels.cache.files import FileFault, Files
from pds_kernels.cache.flight import Flight
from pds_kernels.cache.shelf import OTHERS, STALE_SECONDS, Damaged
from pds_kernels.cache.store import Cache


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of `pds-engine cache ls`."""

    kind: str
    key: str
    bytes: int
    seconds: float
    intact: bool | None
    """None: sealed by another key, so that nobody can tell."""
    used: float
    """Seconds since the epoch of the last use."""
    target: str = ""
    """What it was compiled for: sm_90, or cpu- and the digest of what the CPU can do. Empty where
    that cannot be read."""


def entries(cache: Cache, *, any_key: bool = False) -> Iterator[Entry]:
    """Every artefact under our key, damaged ones too; with `any_key` those of other keys as well.

    Raises:
        Trouble: the volume cannot be read.
    """
    shelf, read = cache.volume.shelf, cache.volume.read
    for kind in read(partial(Files.names, folder=shelf.root)):
        if kind in OTHERS:
            continue
        for part in read(partial(Files.names, folder=shelf.root / kind)):
            for key in read(partial(Files.names, folder=shelf.root / kind / part)):
                entry = read(partial(_entry, cache=cache, kind=kind, key=key))
                if entry is not None and (any_key or entry.intact is not None):
                    yield entry


def prune(cache: Cache, *, unused_for: float, now: float, any_key: bool = False) -> list[Entry]:
    """Remove what is damaged or was unused for `unused_for` seconds at `now`, and leftovers.

    Raises:
        Trouble: the volume cannot be read, or nothing can be removed from it.
    """
    volume, shelf = cache.volume, cache.volume.shelf
    volume.write(partial(_sweep, cache=cache))
    gone = [
        entry
        for entry in entries(cache, any_key=any_key)
        if entry.intact is False or now - entry.used > unused_for
    ]
    for entry in gone:
        volume.write(partial(shelf.discard, kind=entry.kind, key=entry.key))
        Flight(volume, entry.key, cache.lease).forget()
    return gone


def _sweep(files: Files, cache: Cache) -> None:
    """Scratch folders and locks that nobody has touched for long: a holder beats all the while."""
    cache.volume.shelf.sweep(files)
    locks = cache.volume.locks
    if not files.exists(locks):
        return
    files.touch(locks)
    now = files.modified(locks)
    for name in files.names(locks):
        with suppress(FileFault):
            if now - files.modified(locks / name) > STALE_SECONDS:
                files.remove(locks / name)


def _entry(files: Files, cache: Cache, kind: str, key: str) -> Entry | None:
    """None where it is gone meanwhile."""
    shelf = cache.volume.shelf
    folder = shelf.folder(kind, key)
    try:
        names = files.tree(folder)
        size = sum(files.size(folder / name) for name in names)
        mark = folder / seal.COMMITTED
        used = files.modified(mark if seal.COMMITTED in names else folder)
        maker = seal.key_of(files.read(folder / seal.META)) if seal.META in names else ""
    except FileFault as fault:
        if fault.absent:
            return None
        raise
    if maker not in ("", cache.seal_key):
        return Entry(kind, key, size, 0.0, None, used)
    try:
        item = shelf.check(files, kind, key)
    except Damaged:
        return Entry(kind, key, size, 0.0, False, used)
    if item is None:
        return None
    target = str(item.meta.get("inputs", {}).get("target", ""))
    return Entry(kind, key, size, item.seconds, True, used, target)
