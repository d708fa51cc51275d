"""The waiting queue: by priority, then first come first served."""

import heapq
from collections.abc import Iterator

from pds_engine.scheduler.request import Request


class WaitingQueue:
    """A smaller priority number is served sooner; equal ones in order of arrival.

    So a preempted request, which was admitted before, stands before all others of its priority.
    The bound is the scheduler's, which also counts requests that wait for an offer.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Request]] = []
        self._members: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Request]:
        """In no order."""
        return iter(self._members.values())

    def push(self, request: Request) -> None:
        self._members[request.arrival] = request
        heapq.heappush(self._heap, (*request.rank, request))

    def first(self) -> Request | None:
        """The request that is served next, left in its place."""
        while self._heap:
            _, _, arrival, request = self._heap[0]
            if arrival in self._members:
                return request
            heapq.heappop(self._heap)
        return None

    def remove(self, request: Request) -> None:
        """Take the request out, wherever it stands; its heap entry goes when it comes up.

        The first one's goes at once: preempted, it may come back to the same place.
        """
        self._members.pop(request.arrival, None)
        if self._heap and self._heap[0][2] == request.arrival:
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [entry for entry in self._heap if entry[2] in self._members]
            heapq.heapify(self._heap)
