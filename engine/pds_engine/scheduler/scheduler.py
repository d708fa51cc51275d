"""The scheduler's core: messages and the time in, messages out. No torch, no socket, no clock.

`handle` takes what has come, `plan` issues as many steps as the pipeline may hold, `tick` sees to
leases and deadlines. Errors of the group (GroupError) are raised: the group then restarts as one.
"""

import logging
import math

from pds_engine.errors import (
    DeadlinePassed,
    Drained,
    InvalidRequest,
    Overloaded,
    PdsError,
    ProtocolError,
    Unavailable,
    Unexpected,
)
from pds_engine.messages import (
    Cancel,
    Drain,
    Fault,
    Gathered,
    Halt,
    Halted,
    Lives,
    Message,
    Progress,
    Ready,
    Room,
    State,
    StepDone,
    Submit,
    Wake,
)
from pds_engine.scheduler.admission import reject_reason
from pds_engine.scheduler.finish import next_token, no_finite_score
from pds_engine.scheduler.handover import HandOver
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import Handlers, Out, Outbox, Party, failure
from pds_engine.scheduler.planner import Planner
from pds_engine.scheduler.ranks import Ranks
from pds_engine.scheduler.request import Phase, Request, wanted
from pds_engine.scheduler.settings import Settings

log = logging.getLogger(__name__)

RETRY_AFTER = 1
"""Seconds that a client is asked to wait when the queue is full."""
SECOND_WORD = 5.0
"""Seconds after step_timeout in which dp rank 0 has the first word."""
JOIN_RETRY_AFTER = 5
"""Seconds that a client is asked to wait while workers load their weights."""


class Scheduler:
    """The only authority of one dp rank. `incarnation` is its group's, which its offers carry."""

    def __init__(self, settings: Settings, incarnation: str, dp_rank: int = 0) -> None:
        self.settings = settings
        self._out = Outbox()
        self.ledger = Ledger(settings, self._out)
        self.handover = HandOver(self.ledger, incarnation, dp_rank, self._closed)
        self.prefill, self.decode = self.handover.prefill, self.handover.decode
        self.planner = Planner(self.ledger, self.prefill, dp_rank)
        self.steps = self.planner.steps
        self.dp_rank = dp_rank
        self.ranks = Ranks(settings, dp_rank)
        self._arrivals = 0
        self._submits = 0
        """That have come, rejected ones included."""
        self._drain_deadline: float | None = None
        self._handlers: Handlers = {
            Ready: lambda _, message, now: self._ready(message),
            Fault: lambda _, message, now: self.ranks.fault(message),
            Progress: lambda _, message, now: self.ranks.progress(message, now),
            Submit: self._submit,
            Cancel: self._cancel,
            Drain: lambda _, message, now: self._drain(message, now),
            StepDone: lambda _, message, now: self._step_done(message, now),
            Gathered: lambda _, message, now: self.planner.gathered(message, now),
            **dict.fromkeys((Wake, Lives, Halt, Halted), self._replica_says),
            **self.handover.handlers,
        }

    @property
    def ready(self) -> bool:
        """Every rank has loaded its weights."""
        return self.ranks.all_ready

    @property
    def rests_until(self) -> float:
        """Nothing is planned before then, whatever comes."""
        return self.planner.rests_until

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    def handle(self, sender: Party, message: Message, now: float) -> list[Out]:
        """Take one message in.

        Raises:
            GroupError: the group cannot go on.
        """
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} is not for a scheduler")
        handler(sender, message, now)
        return self._out.drain()

    def lost(self, party: Party, now: float) -> list[Out]:
        """The connection to `party` has ended: a server, a decode or a prefill scheduler.

        A lost worker is the caller's RankLost: nothing goes on without it.
        """
        self.handover.lost(party, now)
        if party.kind == "server":
            for request in [r for r in self.ledger.requests.values() if r.server == party]:
                self._drop(request, now)
        return self._out.drain()

    def plan(self, now: float) -> list[Out]:
        """Admit waiting requests as slots and pages allow, and issue steps or enter a pass."""
        if self.ready:
            if not self.planner.passes.gathering:  # what was proposed counts on these pages
                self._admit_waiting(now)
            self.planner.plan(now)
        return self._out.drain()

    def tick(self, now: float) -> list[Out]:
        """See to what only time brings about; to be called a few times a second.

        Raises:
            RankLost: a rank has not joined in time.
            StageTimeout: the oldest step is not done in step_timeout.
            GroupError: too many pages are in quarantine.
        """
        self.ranks.tick(now)
        # dp rank 0 hears of all ranks and knows who is at fault: it has the first word.
        patience = self.settings.scheduler.step_timeout + SECOND_WORD * bool(self.dp_rank)
        self.planner.watch(now, patience, self.ranks)
        self.handover.tick(now)
        for request in list(self.ledger.requests.values()):
            deadline = request.submit.deadline
            if deadline is not None and now >= deadline:
                self._abort(request, DeadlinePassed("the deadline of the request has passed"), now)
        if self._drain_deadline is not None and now >= self._drain_deadline:
            for request in list(self.ledger.requests.values()):
                self._abort(request, Drained("the group had to drain, ask another"), now)
        return self._out.drain()

    def room(self) -> Room:
        """What this dp rank could admit now, besides those in its queue. These were bound to it a
        moment ago and are admitted after the pass under way, or have been preempted."""
        ledger, first = self.ledger, self.ledger.queue.first()
        free, spare = ledger.allocator.slots.free, ledger.allocator.spare
        slots = free - len(ledger.queue)
        pages = spare - sum(wanted(r.submit, self.settings, r.given) for r in ledger.queue)
        held_up = slots < 0 or pages < 0
        return Room(
            seen=self._submits,
            slots=max(slots, 0),
            pages=max(pages, 0),
            waiting=len(ledger.queue) if held_up else 0,
            first=first.submit.priority if first and held_up else 0,
            first_slots=free if held_up else 0,
            first_pages=spare if held_up else 0,
        )

    def state(self, now: float) -> State:
        """What `/pds/state` reports."""
        ledger = self.ledger
        waiting = [*ledger.queue, *self.prefill.unoffered.values(), *ledger.prefilling]
        return State(
            in_flight=len(ledger.requests),
            running=ledger.running,
            transfers_in_flight=len(self.prefill.transfers)
            + len(self.prefill.closing)
            + len(self.decode.live),
            queued_tokens=sum(r.context_len - r.computed for r in waiting),
            kv_used=ledger.pool.used,
            kv_total=ledger.pool.total,
            kv_quarantined=ledger.pool.quarantined,
            kv_cached=ledger.pool.cache.idle,
            prefix_query_tokens=ledger.prefix_queries,
            prefix_hit_tokens=ledger.prefix_hits,
            draining=self.draining,
            ranks_ready=self.ranks.count,
            kv_fingerprint=self.decode.kv_fingerprint,
            steps_done=ledger.done + 1,
            oldest_step_seconds=self.steps.stalled(now),
            preemptions=ledger.preemptions,
            kernels=self.ranks.kernels,
            model_digest=self.ranks.model_digest,
            missing=self.ranks.missing,
            traffic=self.ranks.traffic,
            passes=self.planner.passes.next_id,
            sync_seconds=self.planner.sync_seconds,
            delayer_ticks=self.planner.delays.ticks,
            delayer_seconds=self.planner.delays.seconds,
            delayer_passes=tuple(sorted(self.planner.delays.outcomes.items())),
            startup=self.ranks.startup,
        )

    # ---- workers -----------------------------------------------------------------------------

    def _ready(self, message: Ready) -> None:
        if self.ranks.ready(message):
            self.ledger.open(self.ranks.pages)
            self.decode.endpoints = self.ranks.endpoints
            self.decode.kv_fingerprint = self.ranks.kv_fingerprint

    def _step_done(self, message: StepDone, now: float) -> None:
        samplers = self.steps.finish(message, now)
        self.planner.step_done(message)
        logprobs = message.logprobs or (None,) * len(samplers)
        results = zip(samplers, message.tokens, logprobs, strict=True)
        unsound, ended = message.unsound, Phase.ENDED
        for place, (request, token, scores) in enumerate(results):
            if request.phase is ended:
                continue
            if unsound and place in unsound:
                self.ledger.allocator.disown(request)
                self._abort(request, no_finite_score(), now)
                continue
            prompt = request.take_prompt_logprobs()
            known = next_token(request, token, scores, prompt, request.cached)
            self.ledger.append(request, known)
            if request.transferring:
                self.prefill.sampled(request, known)
                self.ledger.finish(request)
            elif known.finish_reason is not None:
                self.ledger.finish(request)
        self.ledger.step_done(message.step_id)

    # ---- requests -----------------------------------------------------------------------------

    def _submit(self, server: Party, message: Submit, now: float) -> None:
        self._submits += 1
        request = self._checked(server, message, now)
        if isinstance(request, PdsError):
            self._out.put(server, failure(message.request_id, request))
            return
        self._arrivals += 1
        self.ledger.add(request)
        if message.role_hint == "prefill":
            self.prefill.submit(request)
        else:
            self.ledger.enqueue(request)

    def _checked(self, server: Party, message: Submit, now: float) -> Request | PdsError:
        """The request that `message` asks for, or why it is rejected. Nothing is changed yet, so
        whatever goes wrong here ends this request alone."""
        try:
            return self._rejection(message) or Request(message, server, self._arrivals, now)
        except Exception:
            log.exception("the request %s could not be checked", message.request_id)
            return Unexpected("an internal error; the scheduler's log has it")

    def _rejection(self, message: Submit) -> PdsError | None:
        """Why this request is rejected: for now, or because it could never be served."""
        waiting = len(self.ledger.queue) + len(self.prefill.unoffered)
        if (problem := self._closed()) is not None:
            return problem
        if message.request_id in self.ledger.requests:
            return InvalidRequest(f"the request id {message.request_id} is in use")
        if (reason := reject_reason(message, self.settings, self.ledger.pool.total)) is not None:
            return reason
        bounds = self.settings.scheduler
        at_once = waiting == 0 and self.ledger.running < bounds.max_running
        begun = bool(message.output_ids)  # its client has a part of the answer
        # Above dp 1 the API server has the queue and its bound (server/placement.py): what comes
        # from there was accepted.
        bounded = self.settings.parallelism.dp == 1
        if bounded and waiting >= bounds.max_waiting and not at_once and not begun:
            return Overloaded(f"{waiting} requests are waiting already", retry_after=RETRY_AFTER)
        return None

    def _closed(self) -> PdsError | None:
        if self.draining:
            return Unavailable("the group is draining")
        if not self.ready:
            ranks = f"{self.ranks.count} of {self.settings.ranks}"
            return Unavailable(f"{ranks} ranks are ready", retry_after=JOIN_RETRY_AFTER)
        return None

    def _admit_waiting(self, now: float) -> None:
        """In the queue's order; the first that does not fit holds up the rest: nobody starves."""
        while (request := self.ledger.admissible()) is not None:
            if self.prefill.is_closing(request):
                return
            self.ledger.admit(request)
            if self.settings.role == "decode":
                self.decode.offer(request, now)
                continue
            if self.settings.role == "prefill":
                self.prefill.open(request)
            self.ledger.start_prefill(request)

    def _cancel(self, server: Party, message: Cancel, now: float) -> None:
        request = self.ledger.requests.get(message.request_id)
        if request is None:
            self.handover.cancel(message.request_id)
        elif request.server == server:
            self._drop(request, now)

    def _drop(self, request: Request, now: float) -> None:
        """Nobody wants the request any more, in whichever phase it is."""
        self.handover.withdraw(request, "cancelled", now)
        self.ledger.finish(request)

    def _abort(self, request: Request, error: PdsError, now: float) -> None:
        """The request fails, in whichever phase it is."""
        self.ledger.abort(request, error, lambda: self.handover.withdraw(request, error.code, now))

    def _replica_says(self, sender: Party, message: Message, now: float) -> None:
        self.planner.heard(message)

    def _drain(self, message: Drain, now: float) -> None:
        """Of several that ask, the one with the earliest deadline counts."""
        before = math.inf if self._drain_deadline is None else self._drain_deadline
        self._drain_deadline = min(before, now + message.deadline_seconds)
