"""Which rows the next step has.

Who decodes: those planned longest ago, if their last token was sampled pp steps ago or is known.
Who prefills: the first in order has every second turn, and those with least left have the others.
So a short prompt waits for one chunk of a long one, not for all of them. And whoever comes
meanwhile, a prompt takes at most twice its own chunks and those before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.preemption import with_pages
from pds_engine.scheduler.prefill import Chunk, ChunkPolicy, next_chunks
from pds_engine.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Picked:
    """The rows of a step to be: running requests that decode one token, and slices of prompts."""

    decodes: Sequence[Request]
    chunks: Sequence[tuple[Request, Chunk]]

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
    ledger: Ledger, step_id: int, policy: ChunkPolicy, alternation: Alternation
) -> Picked | None:
    """The rows of step `step_id`, or None when nothing can be computed now.

    A request whose last token is neither known nor sampled pp steps ago is planned only when
    nothing else can be, in a step of such rows alone. A step takes at most ceil(running / pp)
    decode rows, so that every stage has some, and none drags a chunk's pace. Where prompts are
    computed apart, steps of the two kinds take turns, and those of decode rows take twice as many.

    Running requests may be preempted for the pages of these rows (preemption.py).
    """
    settings = ledger.settings
    apart = settings.separate and bool(ledger.prefilling)
    # Whoever computes its last token still counts: else the last of many that end together would
    # be spread over ever smaller steps.
    share = -(-ledger.decodes * (1 + apart) // settings.parallelism.pp)
    known = max(step_id - settings.parallelism.pp, ledger.done)
    due = takewhile(lambda request: request.last_sample <= known, ledger.decoding)
    decodes = [] if apart and not alternation.decodes else with_pages(ledger, due, share)
    room = min(policy.chunk_size, settings.step_tokens - len(decodes))
    chunks = [] if apart and decodes else next_chunks(_in_turn(ledger, alternation), room, policy)
    if not decodes and not chunks:
        decodes = with_pages(ledger, ledger.decoding, share)
    return Picked(decodes, chunks) if decodes or chunks else None


def _in_turn(ledger: Ledger, alternation: Alternation) -> Iterable[Request]:
    if alternation.shortest and len(ledger.prefilling) > 1:
        return sorted(ledger.prefilling, key=_least_left)
    return ledger.prefilling


def _least_left(request: Request) -> tuple[int, int, float, int]:
    priority, since, arrival = request.rank
    return priority, request.context_len - request.computed, since, arrival
