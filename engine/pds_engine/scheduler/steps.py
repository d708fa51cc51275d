"""Planning steps: which rows the next one has, what it depends on, what its stages exchange.

Stages never re-derive any of this: the plan says it, so that both ends of every exchange agree.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from pds_engine.errors import ProtocolError
from pds_engine.messages import Push, Row, StepDone, StepPlan
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.prefill import Chunk, ChunkPolicy, next_chunk
from pds_engine.scheduler.request import Phase, Request
from pds_engine.scheduler.settings import Settings


@dataclass(frozen=True, slots=True)
class Picked:
    """The rows of a step to be: running requests that decode one token, and slices of prompts."""

    decodes: Sequence[Request]
    chunks: Sequence[tuple[Request, Chunk]]

    @property
    def samplers(self) -> list[Request]:
        """The requests that the step samples for, in row order."""
        return [*self.decodes, *(request for request, chunk in self.chunks if chunk.samples)]


@dataclass(frozen=True, slots=True)
class Issued:
    """A step in flight."""

    plan: StepPlan
    samplers: Sequence[Request]
    at: float
    scored: Sequence[tuple[Request, int]] = ()
    """Requests whose prompt log-probabilities come with it, and from which position on."""


def pick(ledger: Ledger, step_id: int, policy: ChunkPolicy) -> Picked | None:
    """The rows of step `step_id`, or None when there is nothing to compute.

    A request is planned if its last token was sampled pp steps ago or is known; else only when
    nothing else can be planned, in a step of such rows alone. A step takes at most
    ceil(decoding / pp) decode rows, so that every stage has some, and none drags a chunk's pace.
    """
    settings = ledger.settings
    share = -(-len(ledger.decoding) // settings.pp)
    known = max(step_id - settings.pp, ledger.done)
    oldest = islice(ledger.decoding, share)
    decodes = list(takewhile(lambda request: request.last_sample <= known, oldest))
    budget = min(policy.chunk_size, settings.max_step_tokens - len(decodes))
    chunks = _chunks(ledger.prefilling, budget, policy)
    if not decodes and not chunks:
        decodes = list(islice(ledger.decoding, share))
    return Picked(decodes, chunks) if decodes or chunks else None


def depends_on(picked: Picked, step_id: int, settings: Settings) -> int:
    """The last step whose tokens this one reads; -1: none. Slices of prompts read no token.

    With skip_output off (for comparison) every step waits for the one before it, as engines did
    whose stages exchanged outputs of middle chunks: M chunks on N stages then take M·N.
    """
    if settings.pp > 1 and not settings.skip_output:
        return step_id - 1
    return max((request.last_sample for request in picked.decodes), default=-1)


def expects_output(samplers: Iterable[Request], settings: Settings) -> bool:
    """Whether the last stage sends this step's tokens to the first, for later steps to read.

    Decided here alone, before the step counts its own tokens: some row samples, and its request may
    be planned again in this group. With skip_output off (for comparison) every step sends.
    """
    if settings.pp == 1:
        return False
    if not settings.skip_output:
        return True
    return settings.role != "prefill" and any(
        request.planned + 1 < request.max_tokens for request in samplers
    )


class Steps:
    """The steps in flight, in order."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.in_flight: deque[Issued] = deque()
        self.next_id = 0

    @property
    def full(self) -> bool:
        """As many steps are in flight as the pipeline may hold."""
        return len(self.in_flight) >= self.ledger.settings.depth

    def issue(self, picked: Picked, pushes: Sequence[Push], now: float) -> StepPlan:
        """Count the picked rows as computed, and make their plan."""
        settings, samplers = self.ledger.settings, picked.samplers
        reads = depends_on(picked, self.next_id, settings)
        sends = expects_output(samplers, settings)
        rows = self._decode_rows(picked.decodes)
        tokens = len(rows)
        scored = [(r, chunk.start) for r, chunk in picked.chunks if r.scores(chunk.start)]
        for request, chunk in picked.chunks:
            rows.append(self._chunk_row(request, chunk))
            tokens += chunk.length
        plan = StepPlan(
            step_id=self.next_id,
            rows=tuple(rows),
            expects_output=sends,
            depends_on=reads,
            padded_tokens=tokens + -tokens % settings.tp,
            padded_rows=len(rows),
            pushes=tuple(pushes),
        )
        self.in_flight.append(Issued(plan, samplers, now, scored))
        self.next_id += 1
        return plan

    def finish(self, message: StepDone) -> Sequence[Request]:
        """The requests that `message` has a token for each.

        Raises:
            ProtocolError: it is not the oldest step's result, or not of that step's shape.
        """
        if not self.in_flight or self.in_flight[0].plan.step_id != message.step_id:
            expected = self.in_flight[0].plan.step_id if self.in_flight else "none"
            raise ProtocolError(f"step {message.step_id} is done, {expected} was expected")
        samplers = self.in_flight[0].samplers
        if len(message.tokens) != len(samplers) or len(message.logprobs) not in (0, len(samplers)):
            raise ProtocolError(
                f"step {message.step_id} samples for {len(samplers)} rows, its result has "
                f"{len(message.tokens)} tokens and {len(message.logprobs)} logprobs"
            )
        self._keep_scores(message)
        self.in_flight.popleft()
        return samplers

    def _keep_scores(self, message: StepDone) -> None:
        scored = self.in_flight[0].scored
        if len(message.prompt_logprobs) != len(scored):
            raise ProtocolError(
                f"step {message.step_id} scores {len(scored)} prompts, its result has "
                f"{len(message.prompt_logprobs)}"
            )
        for (request, start), found in zip(scored, message.prompt_logprobs, strict=True):
            # In place: a prompt that is computed again tells the same once more.
            request.prompt_logprobs[start : start + len(found)] = found

    def _decode_rows(self, requests: Sequence[Request]) -> list[Row]:
        pool, decoding, step = self.ledger.pool, self.ledger.decoding, self.next_id
        page_size = self.ledger.settings.page_size
        rows = []
        for request in requests:
            decoding.popleft()
            start = request.computed
            grown: tuple[int, ...] = ()
            if start == len(request.pages) * page_size:
                grown = pool.take(1)
                request.pages += grown
                request.promised -= 1
            rows.append(
                Row(
                    slot=request.slot,
                    gen=request.gen,
                    start=start,
                    length=1,
                    new_pages=grown,
                    samples=True,
                )
            )
            request.computed = start + 1
            request.planned += 1
            request.last_step = request.last_sample = step
            if request.planned < request.max_tokens:
                decoding.append(request)
        return rows

    def _chunk_row(self, request: Request, chunk: Chunk) -> Row:
        scores = request.scores(chunk.start)
        request.computed += chunk.length
        request.last_step = self.next_id
        if chunk.samples:
            request.planned += 1
            request.last_sample = self.next_id
            request.phase = Phase.DECODING
            self.ledger.prefilling.remove(request)
            if self.ledger.settings.role != "prefill" and request.planned < request.max_tokens:
                self.ledger.decoding.append(request)
        return Row(
            slot=request.slot,
            gen=request.gen,
            start=chunk.start,
            length=chunk.length,
            samples=chunk.samples,
            scores=scores,
        )


def _chunks(
    requests: Iterable[Request], budget: int, policy: ChunkPolicy
) -> list[tuple[Request, Chunk]]:
    """Slices of prompts, first come first served, of `budget` tokens together."""
    chunks = []
    for request in requests:
        chunk = next_chunk(request, budget, policy)
        if chunk is None:
            break
        budget -= chunk.length
        chunks.append((request, chunk))
    return chunks
