"""Which rows the next step has: a proposal, which changes nothing until it is issued (steps.py).

Who decodes: those planned longest ago, if their last token was sampled pp steps ago or is known.
Who prefills: the first in order has every second turn, and those with least left have the others.
So a short prompt waits for one chunk of a long one, not for all of them. And whoever comes
meanwhile, a prompt takes at most twice its own chunks and those before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.preemption import Forecast, with_pages
from pds_engine.scheduler.prefill import Chunk, ChunkPolicy, next_chunks
from pds_engine.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Picked:
    """The rows of a step to be: running requests that decode one token, and slices of prompts."""

    decodes: Sequence[Request]
    chunks: Sequence[tuple[Request, Chunk]]
    victims: Sequence[Request] = ()
    """Running requests that are preempted for the pages of these rows (preemption.py)."""

    @property
    def samplers(self) -> list[Request]:
        """The requests that the step samples for, in row order."""
        return [*self.decodes, *(request for request, chunk in self.chunks if chunk.samples)]


@dataclass(slots=True)
class Alternation:
    """Whose turn it is in the next step, after the steps so far."""

    shortest: bool = False
    """The next chunks go to those with least left; else to the first in order."""
    decodes: bool = False
    """Where a step holds one kind of rows: running requests are next."""

    def took(self, picked: Picked) -> None:
        """A step has these rows."""
        if picked.chunks:
            self.shortest = not self.shortest
        self.decodes = bool(picked.chunks)


def pick(
    ledger: Ledger,
    step_id: int,
    policy: ChunkPolicy,
    alternation: Alternation,
    *,
    prompts: bool = True,
) -> Picked | None:
    """The rows of step `step_id`, or None when nothing can be computed now.

    A request whose last token is neither known nor sampled pp steps ago is planned only when
    nothing else can be, in a step of such rows alone. A step takes at most ceil(running / pp)
    decode rows, so that every stage has some, and none drags a chunk's pace. Where prompts are
    computed apart, steps of the two kinds take turns, and those of decode rows take twice as many.

    Args:
        prompts: False: the prefill delayer may have the prompts wait (dp/delayer.py).
    """
    settings, forecast = ledger.settings, Forecast(ledger)
    apart = settings.separate and bool(ledger.prefilling) and prompts
    # Whoever computes its last token still counts: else the last of many that end together would
    # be spread over ever smaller steps.
    share = -(-ledger.decodes * (1 + apart) // settings.parallelism.pp)
    known = max(step_id - settings.parallelism.pp, ledger.done)
    due = takewhile(lambda request: request.last_sample <= known, ledger.decoding)
    decodes: Sequence[Request] = []
    if not apart or alternation.decodes:
        decodes = with_pages(ledger, forecast, due, share)
    chunks: Sequence[tuple[Request, Chunk]] = []
    if prompts and not (apart and decodes):
        room = min(policy.chunk_size, settings.step_tokens - len(decodes))
        chunks = next_chunks(_in_turn(ledger, alternation, forecast.victims), room, policy)
    if not decodes and not chunks:
        decodes = with_pages(ledger, forecast, ledger.decoding, share)
    if not (decodes or chunks or forecast.victims):
        return None
    return Picked(decodes, chunks, forecast.victims)


def _in_turn(
    ledger: Ledger, alternation: Alternation, victims: Sequence[Request]
) -> Iterable[Request]:
    prefilling: Sequence[Request] = ledger.prefilling
    if victims:
        prefilling = [request for request in prefilling if request not in victims]
    if alternation.shortest and len(prefilling) > 1:
        return sorted(prefilling, key=_least_left)
    return prefilling


def _least_left(request: Request) -> tuple[int, int, float, int]:
    priority, since, arrival = request.rank
    return priority, request.context_len - request.computed, since, arrival
