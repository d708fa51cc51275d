"""Planning steps: what the next one depends on, what its stages exchange, what chunks cost.

Stages never re-derive any of this: the plan says it, so that both ends of every exchange agree.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pds_engine.errors import ProtocolError
from pds_engine.messages import Push, StepDone, StepPlan
from pds_engine.scheduler.cost import Measured, Meter
from pds_engine.scheduler.dp.batches import needs_padding, padded
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.pick import Alternation, Picked, pick
from pds_engine.scheduler.prefill import Chunk, ChunkPolicy
from pds_engine.scheduler.request import Request
from pds_engine.scheduler.settings import Settings


@dataclass(frozen=True, slots=True)
class Issued:
    """A step in flight."""

    plan: StepPlan
    samplers: Sequence[Request]
    chunks: tuple[tuple[int, int], ...]
    """(start, length) of its slices of prompts, if it has no other rows."""
    at: float
    scored: Sequence[tuple[Request, int]] = ()
    """Requests whose prompt log-probabilities come with it, and from which position on."""


def depends_on(picked: Picked, step_id: int, settings: Settings) -> int:
    """The last step whose tokens this one reads; -1: none. Slices of prompts read no token.

    With skip_output off (for comparison) every step waits for the one before it, as engines did
    whose stages exchanged outputs of middle chunks: M chunks on N stages then take M·N.
    """
    if settings.parallelism.pp > 1 and not settings.pipeline.skip_output:
        return step_id - 1
    return max([request.last_sample for request in picked.decodes], default=-1)


def expects_output(samplers: Iterable[Request], settings: Settings) -> bool:
    """Whether the last stage sends this step's tokens to the first, for later steps to read.

    Decided here alone, before the step counts its own tokens: some row samples, and its request may
    be planned again in this group. With skip_output off (for comparison) every step sends.
    """
    if settings.parallelism.pp == 1:
        return False
    if not settings.pipeline.skip_output:
        return True
    return settings.role != "prefill" and any(
        request.planned + 1 < request.max_tokens for request in samplers
    )


class Steps:
    """The steps in flight, in order."""

    def __init__(self, ledger: Ledger) -> None:
        settings = ledger.settings
        self.ledger = ledger
        self.policy = ChunkPolicy(settings.scheduler.chunk_size, settings.kv.page_size)
        self.in_flight: deque[Issued] = deque()
        self.next_id = 0
        self._advanced = 0.0
        """When a step was last done."""
        self._alternation = Alternation()
        self._meter = Meter(settings.window)

    @property
    def full(self) -> bool:
        """As many steps are in flight as the pipeline may hold."""
        return len(self.in_flight) >= self.ledger.settings.depth

    def pick(self, *, prompts: bool = True) -> Picked | None:
        """A proposal for the next step, with or without prompts; None: nothing can be computed."""
        return pick(self.ledger, self.next_id, self.policy, self._alternation, prompts=prompts)

    def issue(
        self,
        picked: Picked,
        push: Callable[[Request, Chunk], Push],
        now: float,
        padded_tokens: int | None = None,
        dp_tokens: tuple[int, ...] = (),
    ) -> StepPlan:
        """Schedule the picked rows, and make their plan.

        Args:
            push: what a slice of a prompt that is handed over adds to the peer's pages.
            padded_tokens: what the dp ranks have agreed on; None: no more than attention's tp asks.

        Raises:
            ProtocolError: the rows have more tokens than were agreed on.
        """
        settings, samplers = self.ledger.settings, picked.samplers
        reads = depends_on(picked, self.next_id, settings)
        sends = expects_output(samplers, settings)
        rows = self.ledger.schedule_decodes(picked.decodes, self.next_id)
        tokens = len(rows)
        scored = [(r, chunk.start) for r, chunk in picked.chunks if r.scores(chunk.start)]
        pushes = []
        for request, chunk in picked.chunks:
            rows.append(self.ledger.schedule_chunk(request, chunk, self.next_id))
            tokens += chunk.length
            if request.transferring:
                pushes.append(push(request, chunk))
        if padded_tokens is None:
            tp = settings.parallelism.tp
            padded_tokens = padded(tokens, tp) if needs_padding(tokens > 0) else 0
        if tokens > padded_tokens:
            raise ProtocolError(f"step {self.next_id}: {tokens} tokens, {padded_tokens} agreed on")
        plan = StepPlan(
            step_id=self.next_id,
            rows=tuple(rows),
            expects_output=sends,
            depends_on=reads,
            padded_tokens=padded_tokens,
            pushes=tuple(pushes),
            dp_tokens=dp_tokens,
        )
        chunks = () if picked.decodes else tuple((c.start, c.length) for _, c in picked.chunks)
        self.in_flight.append(Issued(plan, samplers, chunks, now, scored))
        self._alternation.took(picked)
        self.next_id += 1
        return plan

    def stalled(self, now: float) -> float:
        """Seconds since the oldest step was issued, or since the one before it was done."""
        if not self.in_flight:
            return 0.0
        return max(now - max(self.in_flight[0].at, self._advanced), 0.0)

    def finish(self, message: StepDone, now: float) -> Sequence[Request]:
        """The requests that `message` has a token for each.

        Raises:
            ProtocolError: it is not the oldest step's result, or not of that step's shape.
        """
        if not self.in_flight or self.in_flight[0].plan.step_id != message.step_id:
            expected = self.in_flight[0].plan.step_id if self.in_flight else "none"
            raise ProtocolError(f"step {message.step_id} is done, {expected} was expected")
        samplers, chunks = self.in_flight[0].samplers, self.in_flight[0].chunks
        if len(message.tokens) != len(samplers) or len(message.logprobs) not in (0, len(samplers)):
            raise ProtocolError(
                f"step {message.step_id} samples for {len(samplers)} rows, its result has "
                f"{len(message.tokens)} tokens and {len(message.logprobs)} logprobs"
            )
        self._keep_scores(message)
        self.in_flight.popleft()
        self._advanced = now
        if chunks and self.ledger.settings.scheduler.dynamic_chunks:
            self._meter.add(Measured(chunks, message.elapsed))
            self.policy = self.policy._replace(cost=self._meter.cost)
        return samplers

    def _keep_scores(self, message: StepDone) -> None:
        scored = self.in_flight[0].scored
        if len(message.prompt_logprobs) != len(scored):
            raise ProtocolError(
                f"step {message.step_id} scores {len(scored)} prompts, its result has "
                f"{len(message.prompt_logprobs)}"
            )
        for (request, start), found in zip(scored, message.prompt_logprobs, strict=True):
            request.keep_prompt_logprobs(start, found)
