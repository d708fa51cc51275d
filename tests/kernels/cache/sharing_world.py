"""Warm-ups of many pods on one volume, in virtual time: real queues, and a model of the locks."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pds_kernels.cache.sharing import Try, WorkQueue, order

BUILD = 10.0
"""Seconds of a build."""
LOOK = 0.02
"""Seconds of a look at the volume."""
LEASE = 20.0


@dataclass
class Lock:
    holder: int
    since: float
    died: float | None = None

    def content(self, now: float) -> bytes:
        until = now if self.died is None else min(now, self.died)
        return f"{self.holder} {int((until - self.since) / (LEASE / 4))}".encode()


@dataclass
class Pod:
    number: int
    queue: WorkQueue
    idle: int
    ended: float = -1.0
    dead: bool = False


@dataclass
class World:
    """`begun` and `finished` count the builds of each key on all pods, those of the dead too."""

    seed: int
    keys: Sequence[str]
    begin: Sequence[Fraction]
    """One for each pod."""
    workers: int = 2
    jitter: float = 0.0
    """Of builds and of the pods' starts, as a part of BUILD."""
    patience: float = 900.0
    kill: tuple[int, float] | None = None
    """A pod that dies, and when."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each key's build, where they are not BUILD."""
    wants: Sequence[Sequence[str]] = ()
    """Each pod's own keys, where they do not want all."""
    after: Mapping[int, int] = field(default_factory=dict)
    """Pods that begin when another has ended: by number."""
    begun: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    looks: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._events: list[tuple[float, int, object, tuple[object, ...]]] = []
        self._count = itertools.count()
        self._locks: dict[str, Lock] = {}
        self.pods = [
            Pod(
                number,
                WorkQueue(order(wanted, begin), lease=LEASE, patience=self.patience),
                self.workers,
            )
            for number, (begin, wanted) in enumerate(
                zip(self.begin, self.wants or [self.keys] * len(self.begin), strict=True)
            )
        ]

    def hold(self, key: str) -> None:
        """A stranger builds `key`, beats, and never ends."""
        self._locks[key] = Lock(len(self.pods), 0.0)

    def run(self) -> float:
        """When the last pod that lives has all keys."""
        for pod in self.pods:
            if pod.number not in self.after:
                self._at(self._chance.random() * self.jitter * BUILD, self._go_on, pod)
        if self.kill:
            self._at(self.kill[1], self._die, self.pods[self.kill[0]])
        while self._events:
            now, _, act, arguments = heapq.heappop(self._events)
            act(now, *arguments)
        living = [pod for pod in self.pods if not pod.dead]
        assert all(pod.ended >= 0 for pod in living)
        return max(pod.ended for pod in living)

    def _at(self, time: float, act: object, *arguments: object) -> None:
        heapq.heappush(self._events, (time, next(self._count), act, arguments))

    def _go_on(self, now: float, pod: Pod) -> None:
        if pod.dead:
            return
        while pod.idle and (task := pod.queue.next(now)):
            pod.idle -= 1
            self._at(now + LOOK, self._look, pod, task)
        if not pod.queue.left and pod.ended < 0:
            pod.ended = now
            for other in self.pods:
                if self.after.get(other.number) == pod.number:
                    self._at(now, self._go_on, other)
        due = pod.queue.due(now)
        if pod.idle and due is not None:
            self._at(now + due + 1e-6, self._go_on, pod)

    def _look(self, now: float, pod: Pod, task: Try) -> None:
        if pod.dead:
            return
        self.looks += 1
        key, lock = task.key, self._locks.get(task.key)
        if self.finished[key]:
            self._ready(now, pod, lambda: pod.queue.done(key))
        elif task.waited is not None:
            self._build(now, pod, key, shared=False)
        elif lock is not None and lock.content(now) != task.stale:
            self._ready(now, pod, lambda: pod.queue.held(key, lock.content(now), now))
        else:
            self._locks[key] = Lock(pod.number, now)
            self._build(now, pod, key)

    def _build(self, now: float, pod: Pod, key: str, *, shared: bool = True) -> None:
        self.begun[key] += 1
        takes = self.costs.get(key, BUILD) * (1 - self.jitter * self._chance.random())
        self._at(now + takes, self._built, pod, key, shared)

    def _built(self, now: float, pod: Pod, key: str, shared: bool) -> None:
        if pod.dead:
            return
        self.finished[key] += shared
        if (lock := self._locks.get(key)) and lock.holder == pod.number:
            del self._locks[key]
        self._ready(now, pod, lambda: pod.queue.done(key))

    def _ready(self, now: float, pod: Pod, report: object) -> None:
        report()
        pod.idle += 1
        self._go_on(now, pod)

    def _die(self, now: float, pod: Pod) -> None:
        pod.dead = True
        for lock in self._locks.values():
            if lock.holder == pod.number:
                lock.died = now
