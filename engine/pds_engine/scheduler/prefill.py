"""How much of a prompt the next step computes."""

from collections.abc import Iterable
from typing import NamedTuple

from pds_engine.scheduler.cost import Cost
from pds_engine.scheduler.request import Request

FLOOR = 8
"""A late chunk has at least this part of the first one's length: each chunk has a fixed cost."""


class ChunkPolicy(NamedTuple):
    """The chunk's bounds, in tokens. Every chunk costs what a prompt's first one does."""

    chunk_size: int
    page_size: int
    cost: Cost = Cost()

    @property
    def budget(self) -> float:
        """The cost of a first chunk, which all chunks of a step together may have."""
        return self.cost.of(0, self.chunk_size)

    def length_at(self, computed: int) -> int:
        """The length of a chunk that starts after `computed` tokens, before it is cut to pages."""
        floor = min(self.chunk_size, max(self.page_size, self.chunk_size // FLOOR))
        return min(max(self.cost.length(computed, self.budget), floor), self.chunk_size)


class Chunk(NamedTuple):
    """Positions start … start+length-1 of a slot's request. `samples`: they end its context."""

    slot: int
    start: int
    length: int
    samples: bool


def next_chunk(request: Request, budget: int, policy: ChunkPolicy) -> Chunk | None:
    """The next slice of `request`'s context, or None when nothing fits in `budget` tokens.

    A middle chunk is cut to whole pages, so that its pages can be handed over while the next one
    computes.
    """
    left = request.context_len - request.computed
    length = min(left, budget, policy.length_at(request.computed))
    if length < left:
        length -= (request.computed + length) % policy.page_size
    if length <= 0:
        return None
    return Chunk(request.slot, request.computed, length, samples=length == left)


def next_chunks(
    requests: Iterable[Request], room: int, policy: ChunkPolicy
) -> list[tuple[Request, Chunk]]:
    """Slices of the prompts, in their order, that have `room` and cost one first chunk together."""
    chunks: list[tuple[Request, Chunk]] = []
    cost = policy.budget
    for request in requests:
        if chunks:
            if cost <= 0:
                break
            room = min(room, policy.cost.length(request.computed, cost))
        chunk = next_chunk(request, room, policy)
        if chunk is None:
            break
        chunks.append((request, chunk))
        room -= chunk.length
        cost -= policy.cost.of(chunk.start, chunk.length)
    return chunks
