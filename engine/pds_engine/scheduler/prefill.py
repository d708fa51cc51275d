"""How much of a prompt the next step computes."""

from typing import NamedTuple

from pds_engine.scheduler.request import Request


class ChunkPolicy(NamedTuple):
    """The chunk's bounds, in tokens."""

    chunk_size: int
    page_size: int

    def length_at(self, computed: int) -> int:
        """The length of a chunk that starts after `computed` tokens; all alike for now."""
        return self.chunk_size


class Chunk(NamedTuple):
    """Positions start … start+length-1 of a slot's request; `samples`: they end what is given."""

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
