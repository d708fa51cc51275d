"""Which dp rank of a group computes a request: decided as late as can be (data-parallel.md; pure).

All requests wait in one queue, and the first is bound when some dp rank can admit it. So no rank's
queue is long while another rank idles, and a rank that falls behind gets nothing more.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pds_engine.messages import Room, Submit

AFFINITY_TOKENS = 64
"""Requests that begin with the same tokens, so many, go to the same dp rank where that is fair."""
AFFINITY_SLACK = 1024
"""Tokens that the rank of a prefix may have more than the least loaded one."""
REMEMBERED = 4096
"""Beginnings whose dp rank is remembered."""

STALE = 64
"""Requests that were given up and may stay in the heap, besides as many as wait."""


@dataclass(slots=True)
class RankLoad:
    """What is known of one dp rank."""

    room: Room
    sent: int = 0
    """Submits so far."""
    unseen: deque[int] = field(default_factory=deque)
    """Pages of those that `room` does not count yet."""
    requests: int = 0
    tokens: int = 0
    """Of its unfinished requests: prompts, and outputs so far."""

    def admits(self, pages: int, priority: int) -> bool:
        """Whether it could admit a request now: before those that wait there, if it is more urgent
        than they are."""
        room = self.room
        before = bool(room.waiting) and priority < room.first
        slots, free = (room.first_slots, room.first_pages) if before else (room.slots, room.pages)
        fits = slots > len(self.unseen) and free >= pages + sum(self.unseen)
        return fits and (before or not room.waiting)


class Placement:
    """The queue of one group, and the dp ranks that it empties into.

    Args:
        dp: ranks, none of which has reported yet.
        wanted: pages that a rank must have to admit a request.
        lease_seconds: on role=prefill: how long a request waits for its offer, without which it
            cannot be computed. None: it needs no offer.
    """

    def __init__(
        self,
        dp: int,
        wanted: Callable[[Submit], int],
        max_waiting: int,
        *,
        lease_seconds: float | None = None,
    ) -> None:
        self._max_waiting = max_waiting
        self.loads: list[RankLoad | None] = [None] * dp
        self._wanted = wanted
        self._queue: list[tuple[int, float, int, Submit]] = []
        self._waiting: dict[str, Submit] = {}
        self._arrivals = 0
        self._bound: dict[str, tuple[int, int]] = {}
        """Dp rank and tokens of each unfinished request."""
        self._lease_seconds = lease_seconds
        self._unoffered: dict[str, tuple[Submit, float]] = {}
        """Requests without an offer, and when they came."""
        self._offered: set[str] = set()
        """Offers without a request; as many as dp rank 0 keeps."""
        self._homes: OrderedDict[tuple[int, ...], int] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Every dp rank has said what it could admit."""
        return all(load is not None for load in self.loads)

    @property
    def hands_on(self) -> bool:
        """Requests come with offers, which dp rank 0 keeps until they are bound."""
        return self._lease_seconds is not None

    @property
    def waiting(self) -> int:
        """Requests that no rank could admit yet."""
        return len(self._waiting) + len(self._unoffered)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of those that wait."""
        return sum(len(each.prompt_ids) + len(each.output_ids) for each in self._waiting.values())

    def accepts(self, submits: Sequence[Submit]) -> bool:
        """Whether so many more may come: the queue is bounded, but for those that a rank could take
        at once, and those whose client has a part of its answer."""
        if self.waiting + len(submits) <= self._max_waiting:
            return True
        if all(submit.output_ids for submit in submits):
            return True
        return not self.waiting and len(submits) <= len(self._able(1, submits[0].priority))

    def rank_of(self, request_id: str) -> int | None:
        """The dp rank that a request is bound to."""
        bound = self._bound.get(request_id)
        return None if bound is None else bound[0]

    def add(self, submit: Submit, now: float) -> bool:
        """A request has come; whether it may be bound: on role=prefill not without its offer."""
        name = submit.request_id
        if self._lease_seconds is not None and name not in self._offered:
            self._unoffered[name] = submit, now
            return False
        self._offered.discard(name)
        self._enqueue(submit, now)
        return True

    def offered(self, name: str) -> bool:
        """dp rank 0 has an offer; whether its request is here, and may be bound now."""
        submit, since = self._unoffered.pop(name, (None, 0.0))
        if submit is None:
            self._offered.add(name)
            return False
        self._enqueue(submit, since)
        return True

    def withdrawn(self, name: str) -> bool:
        """The offer is gone; whether a request that waited with it cannot go on."""
        self._offered.discard(name)
        return self._waiting.pop(name, None) is not None

    def withdraw(self, name: str) -> bool:
        """Nobody wants it any more; whether it was still waiting, with an offer."""
        self._unoffered.pop(name, None)
        return self._waiting.pop(name, None) is not None

    def expired(self, now: float) -> list[Submit]:
        """Those whose deadline passed while they waited; they are out of the queue."""
        everyone = [*self._waiting.values(), *(each for each, _ in self._unoffered.values())]
        late = [s for s in everyone if s.deadline is not None and now >= s.deadline]
        for submit in late:
            self.withdraw(submit.request_id)
        return late

    def forsaken(self, now: float) -> list[Submit]:
        """Those whose offer has not come in the time of a lease; they are forgotten."""
        lease = self._lease_seconds or 0.0
        left = [submit for submit, since in self._unoffered.values() if now - since >= lease]
        for submit in left:
            del self._unoffered[submit.request_id]
        return left

    def room(self, rank: int, room: Room) -> None:
        """A dp rank has said what it could admit."""
        load = self.loads[rank]
        if load is None:
            self.loads[rank] = RankLoad(room)
            return
        load.room = room
        while len(load.unseen) > load.sent - room.seen:
            load.unseen.popleft()

    def bind(self, *, all_of_them: bool = False) -> Iterator[tuple[int, Submit]]:
        """Requests that are bound now, in the queue's order, and to which dp rank.

        Args:
            all_of_them: whether or not a rank can admit them, or their offer has come: no more may
                be sent later.
        """
        if all_of_them:
            for waits, since in self._unoffered.values():
                self._enqueue(waits, since)
            self._unoffered.clear()
        while (submit := self._first()) is not None:
            pages = self._wanted(submit)
            able = self._able(pages, submit.priority, all_of_them=all_of_them)
            if not able:
                return
            rank = self._choose(able, submit)
            heapq.heappop(self._queue)
            del self._waiting[submit.request_id]
            self._send(rank, submit, pages)
            yield rank, submit

    def grew(self, request_id: str) -> None:
        """It has one more token."""
        bound = self._bound.get(request_id)
        if bound is not None:
            self._bound[request_id] = bound[0], bound[1] + 1
            self._load(bound[0]).tokens += 1

    def ended(self, request_id: str) -> None:
        """It is over: its rank has that much less to do."""
        rank, tokens = self._bound.pop(request_id, (-1, 0))
        if rank >= 0:
            load = self._load(rank)
            load.requests -= 1
            load.tokens -= tokens

    # ---- steps of the above ------------------------------------------------------------------

    def _enqueue(self, submit: Submit, now: float) -> None:
        self._arrivals += 1
        since = now if submit.since is None else min(submit.since, now)
        heapq.heappush(self._queue, (submit.priority, since, self._arrivals, submit))
        self._waiting[submit.request_id] = submit
        if len(self._queue) > 2 * len(self._waiting) + STALE:
            self._queue = [each for each in self._queue if self._stays(each[3])]
            heapq.heapify(self._queue)

    def _first(self) -> Submit | None:
        while self._queue:
            submit = self._queue[0][3]
            if self._stays(submit):
                return submit
            heapq.heappop(self._queue)
        return None

    def _stays(self, submit: Submit) -> bool:
        """Whether it still waits: those that were given up leave the heap later."""
        return self._waiting.get(submit.request_id) is submit

    def _able(self, pages: int, priority: int, *, all_of_them: bool = False) -> list[int]:
        """The dp ranks that could admit a request of so many pages now; where none has them, those
        without a request: such a rank knows what is too large for it, and says so. (One may hold
        pages without a request: a hand-over ends later than its request.)"""
        here = [(rank, load) for rank, load in enumerate(self.loads) if load is not None]
        able = [rank for rank, load in here if all_of_them or load.admits(pages, priority)]
        return able or [rank for rank, load in here if not load.requests]

    def _choose(self, able: list[int], submit: Submit) -> int:
        """The rank with the fewest tokens, or the one that computed this beginning before, if it
        has not many more."""
        least = min(able, key=lambda rank: (self._load(rank).tokens, rank))
        beginning = submit.prompt_ids[:AFFINITY_TOKENS]
        home = self._homes.get(beginning)
        if home in able:
            most = self._load(least).tokens + AFFINITY_SLACK
            if self._load(home).tokens <= most:
                least = home
        self._homes[beginning] = least
        self._homes.move_to_end(beginning)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)
        return least

    def _send(self, rank: int, submit: Submit, pages: int) -> None:
        load, tokens = self._load(rank), len(submit.prompt_ids) + len(submit.output_ids)
        load.sent += 1
        load.unseen.append(pages)
        load.requests += 1
        load.tokens += tokens
        self._bound[submit.request_id] = rank, tokens

    def _load(self, rank: int) -> RankLoad:
        load = self.loads[rank]
        if load is None:
            raise LookupError(f"dp rank {rank} has not reported")
        return load
