"""How warm-ups that share a volume share the work. Pure: the time is an argument.

Each takes the keys in an order of its own, leaves a key that another process builds for later, and
comes back to those that are held once nothing else is left. So no worker waits while there is a key
that nobody builds, which makes this list scheduling (Graham 1966): n workers end K builds of equal
length after ⌈K/n⌉ of them.
"""

import hashlib
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.25
"""Seconds between two looks at a key that another process builds."""
_SPREAD = 0.05
"""Seconds between two looks at held keys, if there are many: each is a few operations on NFS."""
_GROUP = re.compile(r"(?P<stem>.*?)-(?P<number>\d+)(-\d+)?")
"""A group's name: `chat-p-3-1` is the attempt 1 of group 3."""


def place(index: int, of: int, group: str = "") -> Fraction:
    """Where in the list of keys warm-up `index` of `of` begins: 0 ≤ place < 1.

    They begin at even distances. `group` shifts all warm-ups of a group of that name, for those
    that do not know how many groups there are: groups with consecutive numbers spread by van der
    Corput's sequence in base 2 (0, 1/2, 1/4, 3/4, …), groups of other roles by a digest.
    """
    if not group:
        return Fraction(index, of) % 1
    found = _GROUP.fullmatch(group)
    stem, number = (found["stem"], int(found["number"])) if found else (group, 0)
    digest = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4])
    shift = (Fraction(digest, 1 << 32) + _van_der_corput(number)) % 1
    return (index + shift) / of % 1


def order(keys: Sequence[T], begin: Fraction) -> list[T]:
    """`keys` from the part `begin` of them on, and around."""
    first = int(begin * len(keys))
    return [*keys[first:], *keys[:first]]


def seconds_left(remaining: int, took: Sequence[float], workers: int) -> float | None:
    """How long `remaining` builds take `workers` in all, as those that `took` so many seconds each;
    None while there is none to judge by."""
    if not remaining:
        return 0.0
    return remaining * sum(took) / len(took) / workers if took else None


class Watch:
    """What one process has seen of a lock that another holds, by its own monotonic clock.

    The lock is given up when its holder has not beaten for `lease` seconds. `patience` is how long
    a living holder is waited for.
    """

    def __init__(self, lease: float, patience: float, now: float) -> None:
        self.patience = patience
        self._lease = lease
        self._begun = self._since = now
        self._beat = b""

    def saw(self, beat: bytes, now: float) -> None:
        """The lock holds `beat`: empty where it has none, or was just removed."""
        if beat != self._beat:
            self._beat, self._since = beat, now

    def stale(self, now: float) -> bytes | None:
        """What the lock held all through a lease; None while its holder may live."""
        return self._beat if now - self._since > self._lease else None

    def tired(self, now: float) -> bool:
        """Whether this process has waited for long enough."""
        return now - self._begun > self.patience


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt of a worker at a key: the argument of `Cache.attempt` or `build_alone`."""

    key: str
    stale: bytes | None = None
    """Evict the lock, if it still holds this."""
    waited: float | None = None
    """Build for this pod alone: a living holder was waited for during so many seconds."""


class WorkQueue:
    """What the workers of one warm-up do next, of the keys that it wants.

    Each `Try` that `next` gives ends with one of `done`, `held` and `killed`. `lease` and
    `patience` are those of `Watch`. The times that it is given are of one monotonic clock.
    """

    def __init__(self, keys: Sequence[str], *, lease: float, patience: float) -> None:
        self.running: set[str] = set()
        self._fresh = deque(keys)
        self._held: dict[str, float] = {}
        """When each was looked at last; the one whose turn is next comes first."""
        self._watches: dict[str, Watch] = {}
        self._killed: set[str] = set()
        """Those whose builder was killed: each is built again while nothing else is."""
        self._limits = (lease, patience)

    @property
    def left(self) -> int:
        """Keys that are not done."""
        return len(self._fresh) + len(self._held) + len(self.running)

    def next(self, now: float) -> Try | None:
        """What a worker that has nothing to do begins now; None: nothing."""
        if self.running & self._killed:
            return None
        if self._fresh:
            apart = self._fresh[0] in self._killed
            return None if apart and self.running else self._begin(self._fresh.popleft(), now)
        for key, looked in self._held.items():
            apart = key in self._killed
            if now - looked < self._pause or (apart and self.running):
                return None
            del self._held[key]
            return self._begin(key, now)
        return None

    def due(self, now: float) -> float | None:
        """Seconds until a held key may be looked at again; None: only what runs is waited for."""
        if self._fresh or not self._held or self.running & self._killed:
            return None
        key, looked = next(iter(self._held.items()))
        if key in self._killed and self.running:
            return None
        return max(0.0, looked + self._pause - now)

    def done(self, key: str) -> None:
        """The artefact is there."""
        self._watches.pop(key, None)
        self.running.remove(key)

    def held(self, key: str, beat: bytes, now: float) -> None:
        """Another process builds it; its lock held `beat`."""
        self.running.remove(key)
        watch = self._watches.setdefault(key, Watch(*self._limits, now))
        watch.saw(beat, now)
        self._held[key] = now

    def killed(self, key: str) -> bool:
        """Whoever built it was killed. True: it is tried once more, after all others, and alone."""
        self.running.remove(key)
        again = key not in self._killed
        if again:
            self._killed.add(key)
            self._fresh.append(key)
        return again

    @property
    def _pause(self) -> float:
        return max(PAUSE, _SPREAD * len(self._held))

    def _begin(self, key: str, now: float) -> Try:
        self.running.add(key)
        watch = self._watches.get(key)
        if watch is None:
            return Try(key)
        return Try(key, watch.stale(now), watch.patience if watch.tired(now) else None)


def _van_der_corput(number: int) -> Fraction:
    """The binary digits of `number`, mirrored behind the point."""
    digits = bin(number)[:1:-1]
    return Fraction(int(digits, 2), 1 << len(digits)) if number else Fraction(0)
