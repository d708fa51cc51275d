"""What is wrong with a place, in words: which place, what is the matter, and the cure. Pure."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from pds_kernels.cache.files import Space

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_GONE = frozenset(
    {
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EIO,
        errno.ENXIO,
        errno.ENODEV,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EREMOTEIO,
        errno.ESHUTDOWN,
    }
)
_STORAGE = "look at the storage behind it"


class Trouble(Exception):
    """The volume cannot be used. Its text names the volume, what is wrong, and the cure."""


class PlaceError(RuntimeError):
    """The pod's own folder cannot be used, and there is no other."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What messages call the volume or the pod's own folder, and what helps when it is full."""

    name: str
    cure: str

    def __str__(self) -> str:
        return self.name


def volume(root: Path) -> Storage:
    """The volume that is mounted at `root`."""
    return Storage(
        f"the compile cache's volume at {root}",
        "give it more room, or free some by `pds-engine cache prune`",
    )


def private(root: Path) -> Storage:
    """The folder of one pod at `root`."""
    return Storage(
        f"the pod's own folder {root}", "give its volume more room, or look at what fills the node"
    )


def refused(storage: Storage, number: int, doing: str, space: Space | None, user: int) -> str:
    """The words for error `number` of the system, met by `user` while `doing`."""
    why = os.strerror(number) if number else "an error without a number"
    if number in FULL:
        return full(storage, space, quota=number == errno.EDQUOT)
    if number == errno.EROFS:
        return f"{storage} is read-only: mount it writable"
    if number in _DENIED:
        return f"{storage} refuses uid {user} ({why}: {doing}): give that user write access"
    if number in _GONE:
        return f"{storage} is gone or broken ({why}: {doing}): {_STORAGE}"
    return f"{storage} failed ({why}: {doing}): {_STORAGE}"


def full(storage: Storage, space: Space | None, *, quota: bool = False, asked: int = 0) -> str:
    """The words for a place without room, or without as much as was `asked` for."""
    if quota:
        return f"{storage} is above its quota: {storage.cure}"
    if space is None or not space.total:
        return f"{storage} is full: {storage.cure}"
    if space.files and not space.free_files:
        return f"{storage} is full (0 of {space.files} files free): {storage.cure}"
    room = f"{size(space.free)} of {size(space.total)} free"
    if asked and space.free:
        return f"{storage} has too little space ({room}, {size(asked)} asked for): {storage.cure}"
    return f"{storage} is full ({room}): {storage.cure}"


def slow(storage: Storage, seconds: float, doing: str) -> str:
    """The words for a place that did not answer in time."""
    return f"{storage} does not answer ({seconds:g} s: {doing}): {_STORAGE}"


def held(storage: Storage, seconds: float, lock: Path) -> str:
    """The words for a lock whose holder is alive and delivers nothing."""
    cure = "look at the pod that compiles, or delete that file"
    return f"{storage} has a lock that another process holds for {seconds:.0f} s ({lock}): {cure}"


def size(count: int) -> str:
    """Bytes, for people: 64 KiB."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.1f}".removesuffix(".0") + f" {units[0]}"
