"""Issues steps: at dp 1 whenever one may be, above it one a pass that all dp ranks agree on.

A step is proposed without changing anything, and committed: its victims are preempted, its rows
scheduled, its plan sent. Above dp 1 the ranks gather between the two (dp/passes.py), so that the
prefill delayer's refusal comes before anything has happened.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pds_engine.errors import StageTimeout
from pds_engine.messages import Gather, Gathered, Message, StepDone, Wake
from pds_engine.scheduler.dp.batches import needs_idle_batch, padded, shapes
from pds_engine.scheduler.dp.cadence import Cadence
from pds_engine.scheduler.dp.delayer import Delayer
from pds_engine.scheduler.dp.passes import Passes
from pds_engine.scheduler.dp.price import Price
from pds_engine.scheduler.dp.record import DelayRecord
from pds_engine.scheduler.dp.rows import SyncRow, tokens, unpack
from pds_engine.scheduler.handover_p import PrefillSide
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import REPLICAS, SYNC, WORKERS
from pds_engine.scheduler.pick import Picked
from pds_engine.scheduler.ranks import Ranks
from pds_engine.scheduler.request import Phase
from pds_engine.scheduler.steps import Steps

PACE = 0.001
"""Seconds between two passes in which prompts wait and nobody computes anything: a tick of the
delayer is a pass, and such a pass takes no time by itself."""
NOTHING = Picked((), ())


class Proposal(NamedTuple):
    """The next step's rows, if prompts may be computed, and if they may not."""

    whole: Picked
    without: Picked


class Planner:
    """Proposes and commits the steps of one dp rank."""

    def __init__(self, ledger: Ledger, prefill: PrefillSide, dp_rank: int) -> None:
        self.steps = Steps(ledger)
        self.passes = Passes()
        self._ledger = ledger
        self._prefill = prefill
        self._out = ledger.out
        self._dp, self._dp_rank = ledger.settings.parallelism.dp, dp_rank
        self._proposal = Proposal(NOTHING, NOTHING)
        self._delayer = Delayer.of(ledger.settings)
        fixed = self._dp > 1 and ledger.settings.dp.gather == "none"
        self._cadence = Cadence(dp_rank, self._dp, ledger.settings.depth) if fixed else None
        self._price = Price()
        self._prompts: dict[int, tuple[int, int]] = {}
        """Of steps in flight: tokens of prompts, on the rank that has most, and on all ranks."""
        self.delays = DelayRecord()
        self.sync_seconds = 0.0
        """In gathers so far: until the last rank's row came."""
        self._waits_since = 0.0
        self.rests_until = 0.0
        """No pass is entered before: see PACE."""

    def plan(self, now: float) -> None:
        """Issue as many steps as may be, or enter the next pass."""
        if self._cadence is not None:
            self._keep_step(self._cadence, now)
            return
        if self._dp > 1:
            self._enter(now)
            return
        while not self.steps.full:
            picked = self.steps.pick()
            if self._delayer is not None and picked is not None:
                self._prompts[self.steps.next_id] = 0, 0
                if picked.chunks:
                    picked = self._spaced(picked, self._delayer, now)
            if picked is None or not self._commit(picked, (), now):
                break

    def watch(self, now: float, patience: float, ranks: Ranks) -> None:
        """See that steps and passes end.

        Raises:
            StageTimeout: the oldest step is not done after `patience` seconds, or a row of another
                dp rank has not come, with no step in flight that it could be waiting for.
        """
        seconds = self.steps.stalled(now)
        if seconds > patience:
            oldest = self.steps.in_flight[0].plan
            raise StageTimeout(
                f"step {oldest.step_id} ({len(oldest.rows)} rows) is not done after "
                f"{seconds:.1f} s, {len(self.steps.in_flight)} steps are in flight: "
                f"{ranks.culprit(oldest.step_id, now)}"
            )
        if not self.passes.gathering or self.steps.in_flight:
            self._waits_since = now
        if (seconds := now - self._waits_since) > patience:
            raise StageTimeout(
                f"pass {self.passes.next_id}: another dp rank's scheduler has not given its row "
                f"in {seconds:.1f} s"
            )

    def gathered(self, message: Gathered, now: float) -> None:
        """All ranks' rows of this pass have come: issue its step, unless nobody has one."""
        rows = unpack(message.rows, self._dp)
        self.sync_seconds += message.seconds
        self.passes.gathered(rows)
        runs = self._judged(rows, now)
        counts = tokens(rows, prompts=runs)
        picked = self._proposal.whole if runs else self._proposal.without
        self._proposal = Proposal(NOTHING, NOTHING)
        if needs_idle_batch(self._dp, counts):
            extends = runs and any(row.prompt_tokens for row in rows)
            shape = shapes(counts, self._ledger.settings.parallelism.tp, extends=extends)
            if self._delayer is not None:
                self._note(rows, runs)
            self._commit(_still_there(picked), shape, now)
        elif not self.passes.parked:
            self.rests_until = now + PACE

    def step_done(self, message: StepDone) -> None:
        """A step has taken its time: what prompts cost is learnt from it."""
        most, tokens = self._prompts.pop(message.step_id, (-1, 0))
        if most >= 0:
            self._price.add(most, tokens, message.elapsed)

    def heard(self, message: Message) -> None:
        """Another dp rank wakes this one, or speaks of halting."""
        if self._cadence is not None:
            for answer in self._cadence.heard(message, self.steps.next_id):
                self._out.put(REPLICAS, answer)
        elif isinstance(message, Wake):
            self.passes.wake(message.pass_id)

    # ---- steps of the above ------------------------------------------------------------------

    def _keep_step(self, cadence: Cadence, now: float) -> None:
        """Without a gather: a step of the fixed shape whenever one may be issued, idle or not."""
        settings = self._ledger.settings
        rows = padded(settings.scheduler.max_running, settings.parallelism.tp)
        while True:
            alive = self._ledger.decodes > 0
            for message in cadence.look(alive, self.steps.next_id):
                self._out.put(REPLICAS, message)
            if self.steps.full or not cadence.may_issue(self.steps.next_id):
                return
            if needs_idle_batch(self._dp, None):
                self._commit(self.steps.pick() or NOTHING, (rows,) * self._dp, now)

    def _enter(self, now: float) -> None:
        """Enter the next pass, if this rank may and there is a reason to."""
        if self.passes.gathering or self.steps.full or now < self.rests_until:
            return
        whole = self.steps.pick() or NOTHING
        work = bool(whole.decodes or whole.chunks)
        if not work:
            self._commit(whole, (), now)  # victims alone concern no other rank
        if not self.passes.enters(work):
            return
        self._proposal = self._proposed(whole) if work else Proposal(NOTHING, NOTHING)
        if self.passes.enter():
            self._out.put(REPLICAS, Wake(pass_id=self.passes.next_id))
        self._waits_since = now
        row = self._row(self.passes.next_id, self._proposal, now)
        self._out.put(SYNC, Gather(row=tuple(map(int, row))))

    def _spaced(self, picked: Picked, delayer: Delayer, now: float) -> Picked | None:
        """At dp 1: the delayer keeps prompts apart from decode rows, by this rank's row alone."""
        proposal = self._proposed(picked)
        rows = [self._row(self.steps.next_id, proposal, now)]
        verdict = delayer.decide(rows)
        self.delays.add(verdict, True, now)
        self._note(rows, verdict.runs)
        return proposal.whole if verdict.runs else proposal.without

    def _proposed(self, whole: Picked) -> Proposal:
        if not whole.chunks:
            return Proposal(whole, whole)
        return Proposal(whole, self.steps.pick(prompts=False) or NOTHING)

    def _judged(self, rows: Sequence[SyncRow], now: float) -> bool:
        """Whether the pass runs with its prompts."""
        if self._delayer is None:
            return True
        verdict = self._delayer.decide(rows)
        own, held = bool(self._proposal.whole.chunks), bool(self._ledger.prefilling)
        self.delays.add(verdict, own, now, held=held)
        return verdict.runs

    def _note(self, rows: Sequence[SyncRow], runs: bool) -> None:
        """What the next step computes of prompts, on all ranks."""
        counts = [row.prompt_tokens * runs for row in rows]
        self._prompts[self.steps.next_id] = max(counts), sum(counts)

    def _row(self, pass_id: int, proposal: Proposal, now: float) -> SyncRow:
        ledger = self._ledger
        bounds, knobs = ledger.settings.scheduler, ledger.settings.delayer
        page, pool, prefilling = ledger.settings.kv.page_size, ledger.pool, ledger.prefilling
        prompts = sum(chunk.length for _, chunk in proposal.whole.chunks)
        held = sum(request.context_len - request.computed for request in prefilling)
        used = max(pool.used / pool.total, ledger.running / bounds.max_running)
        return SyncRow(
            pass_id=pass_id,
            decode_tokens=len(proposal.without.decodes),
            prompt_tokens=prompts,
            pending_tokens=held + sum(request.context_len for request in ledger.queue),
            running=len(ledger.decoding),
            begun=any(request.computed > request.shared * page for request in prefilling),
            kv_low=bool(prompts) and used < knobs.low_watermark,
            aged=self.delays.held(now) > knobs.max_seconds,
            cut=len(proposal.whole.chunks) < len(prefilling),
            queued=len(ledger.queue) > 0,
            price=self._price.of(prompts),
            fixed=self._price.fixed,
            beside=len(proposal.whole.decodes),
        )

    def _commit(self, picked: Picked, shape: Sequence[int], now: float) -> bool:
        """Do what was proposed; whether a step was issued.

        Args:
            shape: padded tokens of every dp rank; () at dp 1. With it, a step without rows is an
                idle batch.
        """
        for victim in picked.victims:
            self._ledger.preempt(victim)
        if not (picked.decodes or picked.chunks or shape):
            return False
        own = shape[self._dp_rank] if shape else None
        plan = self.steps.issue(picked, self._prefill.push, now, own, tuple(shape))
        self._out.put(WORKERS, plan)
        return True


def _still_there(picked: Picked) -> Picked:
    """What is left of a proposal: while the ranks gathered, requests may have ended. The pass keeps
    the shape that all agreed on; tokens that are missing are padding."""
    return Picked(
        [request for request in picked.decodes if request.phase is Phase.DECODING],
        [each for each in picked.chunks if each[0].phase is Phase.PREFILLING],
        [r for r in picked.victims if r.phase in (Phase.DECODING, Phase.PREFILLING)],
    )
