"""A group in virtual time: the engine's scheduler, a worker for each rank, and clients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pds_engine.errors import PdsError, Preempted, ProtocolError
from pds_engine.messages import (
    Cancel,
    Failed,
    FinishReason,
    KvEndpoint,
    Message,
    Ready,
    StepDone,
    StepPlan,
    Submit,
    Token,
    TokenLogprobs,
)
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.scheduler.party import REPLICAS, SERVERS, SYNC, WORKERS, Out, Party
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings

from pds_simulation import model
from pds_simulation.events import TRUE, Clock, Events
from pds_simulation.exchange import HiddenWire, OutputWire, SimulatedExchange, Wires
from pds_simulation.runner import SimulatedRunner
from pds_simulation.wire import Delay, Line, Wire
from pds_simulation.worker import Lockstep, SimulatedWorker, Stepper, StepTime

CLIENT = Party("server", "clients")
ENDPOINT = "simulated"
"""The backend by which ranks are written to: their endpoint is the group's name."""


def instant() -> float:
    return 0.0


def one_tick(stage: int, tokens: int, context: int) -> float:
    return 1.0


MakeStage = Callable[[StagePlace, SimulatedWorker, SimulatedExchange], Stepper]


def make_stage(place: StagePlace, worker: SimulatedWorker, exchange: SimulatedExchange) -> Stepper:
    return Stage(place, worker, exchange)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the group runs on: sizes, and how long everything takes, in seconds."""

    pages: int = 1024
    layers: int = 4
    """Of the model; each stage has an equal share, so at least one a stage."""
    step_time: StepTime = one_tick
    link: Delay = instant
    """A transfer between two stages."""
    control: Delay = instant
    """A message between scheduler and worker, or scheduler and client."""
    tick: float = 1.0
    """Between the scheduler's looks at leases and deadlines."""
    rendezvous: bool = True
    """How the wires between stages work: see wire.Wire."""
    make_stage: MakeStage = make_stage


@dataclass(frozen=True, slots=True)
class Replica:
    """The place of a dp rank among others (replicas.py)."""

    dp_rank: int
    stages: Sequence[Lockstep]
    """Of all dp ranks, by stage."""
    carry: Callable[[int, Out], None]
    """Takes what a scheduler sends to SYNC and REPLICAS."""
    clock: Clock = TRUE
    """Of the scheduler's machine."""
    pause: Delay = instant
    """How long the scheduler stands still before it takes in the next message."""


@dataclass(slots=True)
class ReceivedAnswer:
    """What a client has received for its request."""

    request: Submit
    at: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token came."""
    finish_reason: FinishReason | None = None
    failed: Failed | None = None
    cancelled: bool = False
    over: bool = False

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.at


class Group:
    """One replica of a role, or one dp rank of it. Messages between two parties never overtake each
    other."""

    def __init__(
        self,
        events: Events,
        settings: Settings,
        machine: Machine,
        name: str = "simulated",
        replica: Replica | None = None,
    ) -> None:
        pp, tp = settings.parallelism.pp, settings.parallelism.tp
        self.events = events
        self.name = name
        self.settings = settings
        self.machine = machine
        self.replica = replica
        self.core = Scheduler(settings, name, replica.dp_rank if replica else 0)
        self.plans: list[StepPlan] = []
        self.answers: dict[str, ReceivedAnswer] = {}
        self.to_peers: Callable[[Out], None] | None = None
        """Takes what is for another group's scheduler."""
        self.migrate: Callable[[ReceivedAnswer], None] | None = None
        """Continues a request in another group that was preempted here."""
        self.hidden: list[list[HiddenWire]] = [
            [self._wire(f"hidden states {stage}/{shard}") for shard in range(tp)]
            for stage in range(pp - 1)
        ]
        """By stage that sends, by rank in it."""
        self.outputs: list[OutputWire] = [
            self._wire(f"outputs {shard}") for shard in range(tp * (pp > 1))
        ]
        """By rank in the last and the first stage."""
        self.workers = [worker for stage in range(pp) for worker in self._stage(stage)]
        """By rank: the ranks of a stage are neighbours."""
        self._to_workers = [Line(events, machine.control) for _ in self.workers]
        self._to_scheduler = [Line(events, machine.control) for _ in self.workers]
        self._inbox = Line(events, replica.pause if replica else instant)
        self._clock = replica.clock if replica else TRUE
        self._from_clients = Line(events, machine.control)
        self._to_clients = Line(events, machine.control)
        self._awake = False
        self._results: dict[int, list[StepDone]] = {}
        """Of steps that not all ranks of the last stage have reported."""
        numbering, dp_rank = Numbering.of(settings.parallelism), replica.dp_rank if replica else 0
        for rank in (r for stage in range(pp) for r in numbering.attention(stage, dp_rank)):
            backends = {ENDPOINT: name.encode()}
            endpoint = KvEndpoint(rank=rank, shard=b"", pages=machine.pages, backends=backends)
            ready = Ready(
                rank=rank, pages=machine.pages, kv_fingerprint="simulated", endpoint=endpoint
            )
            self.core.handle(WORKERS, ready, self.now)
        events.every(machine.tick, self._tick)

    @property
    def now(self) -> float:
        """What the scheduler takes the time to be."""
        return self._clock.reads(self.events.now)

    # ---- clients -------------------------------------------------------------------------------

    def submit(self, request: Submit, at: float = 0.0) -> None:
        """A client asks, at that moment."""
        self.events.at(at, partial(self._submit, request))

    def cancel(self, request_id: str, at: float = 0.0) -> None:
        """The client goes, at that moment, unless it has its answer."""
        self.events.at(at, partial(self._cancel, request_id))

    def run(self) -> list[ReceivedAnswer]:
        """Until nothing happens any more: what all clients received, in order of asking.

        Raises:
            PdsError: something is left that should not be: a deadlock, a lost message, a leak, or
                an answer that is not the model's.
        """
        self.events.run()
        if faults := self.faults():
            raise PdsError("; ".join(faults))
        return list(self.answers.values())

    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        state = self.core.state(self.now)
        left = {
            "requests": state.in_flight,
            "slots": state.running,
            "pages": state.kv_used,
            "promises": self.core.ledger.pool.promised,
            "steps": len(self.core.steps.in_flight),
        }
        return [
            *(
                f"{name} never ended"
                for name, received in self.answers.items()
                if not received.over
            ),
            *(fault for received in self.answers.values() for fault in self._wrong(received)),
            *(f"{count} {what} are left" for what, count in left.items() if count),
            *(fault for worker in self.workers for fault in worker.faults),
            *(fault for wire in self.wires for fault in wire.faults),
        ]

    @property
    def wires(self) -> list[Wire[Any]]:
        return [*(wire for stage in self.hidden for wire in stage), *self.outputs]

    def _submit(self, request: Submit) -> None:
        self.answers[request.request_id] = ReceivedAnswer(request, self.events.now)
        self._from_clients.carry(partial(self.receive, CLIENT, request))

    def _cancel(self, request_id: str) -> None:
        received = self.answers.get(request_id)
        if received is not None and not received.over:
            received.cancelled = received.over = True
            self._from_clients.carry(partial(self.receive, CLIENT, Cancel(request_id=request_id)))

    def _deliver(self, message: Message) -> None:
        if not isinstance(message, Token | Failed):
            raise ProtocolError(f"a client was sent {type(message).__name__}")
        received = self.answers[message.request_id]
        if received.cancelled:
            return
        if received.over:
            raise ProtocolError(f"{message.request_id} is over and was sent {message}")
        if isinstance(message, Failed):
            received.failed = message
            received.over = True
            if message.code == Preempted.code and self.migrate is not None:
                self.migrate(received)
            return
        if message.index != len(received.request.output_ids) + len(received.tokens):
            raise ProtocolError(f"{message.request_id} was sent output {message.index} out of turn")
        received.tokens.append(message.token)
        received.logprobs.append(message.logprobs)
        received.times.append(self.events.now)
        received.finish_reason = message.finish_reason
        received.over = message.finish_reason is not None or self.settings.role == "prefill"

    def _wrong(self, received: ReceivedAnswer) -> list[str]:
        """How the answer differs from the model's; a cancelled one may only be shorter."""
        count = len(received.tokens)
        right = model.answer(received.request, self.machine.layers, self.settings.window)
        wanted = count if received.cancelled or received.failed else len(right.tokens)
        if self.settings.role == "prefill":
            wanted = min(wanted, 1)
        name = received.request.request_id
        if tuple(received.tokens) != right.tokens[:wanted]:
            return [f"{name} was sent {received.tokens}, the model says {right.tokens[:wanted]}"]
        if tuple(received.logprobs) != right.logprobs[:wanted]:
            return [f"{name} was sent wrong logprobs"]
        return []

    # ---- the scheduler -------------------------------------------------------------------------

    def receive(self, sender: Party, message: Message) -> None:
        """A message has come; when all of this moment have, the next steps are planned."""
        if self.replica is None or self.replica.pause is instant:
            self._take(sender, message)
        else:
            self._inbox.carry(partial(self._take, sender, message))

    def _take(self, sender: Party, message: Message) -> None:
        self._send(self.core.handle(sender, message, self.now))
        if not self._awake:
            self._awake = True
            self.events.after(0.0, self._plan)

    def _plan(self) -> None:
        self._awake = False
        self._send(self.core.plan(self.now))
        self._expect_few_pages()
        rests_until = self.core.rests_until
        if rests_until > self.now and not self._awake:
            self._awake = True
            self.events.at(self._clock.when(rests_until), self._plan)

    def _is_held(self, page: int) -> bool:
        return self.core.ledger.pool.references(page) > 0

    def _expect_few_pages(self) -> None:
        """Where a window moves, nobody holds more pages than it and the steps in flight take."""
        settings = self.settings
        most = settings.at_once(settings.pages_for(settings.max_model_len))
        for request in self.core.ledger.requests.values():
            if len(request.pages) > most:
                raise PdsError(f"{request.id} holds {len(request.pages)} pages, {most} is the most")
            if request.promised < 0:
                raise PdsError(f"{request.id} has taken pages that were promised to others")

    def _tick(self) -> None:
        if not self._inbox.busy:
            self._send(self.core.tick(self.now))
            self._plan()

    def _send(self, out: Sequence[Out]) -> None:
        for item in out:
            if isinstance(item.message, StepPlan):
                self.plans.append(item.message)
            if item.to == WORKERS:
                for worker, line in zip(self.workers, self._to_workers, strict=True):
                    line.carry(partial(worker.give, item.message))
            elif item.to == SERVERS:
                continue  # no server binds requests here: they are bound from the start
            elif item.to in (SYNC, REPLICAS) and self.replica is not None:
                self.replica.carry(self.replica.dp_rank, item)
            elif item.to == CLIENT:
                self._to_clients.carry(partial(self._deliver, item.message))
            elif self.to_peers is not None:
                self.to_peers(item)

    # ---- workers -------------------------------------------------------------------------------

    def _wire(self, name: str) -> Wire[Any]:
        return Wire(self.events, name, self.machine.link, rendezvous=self.machine.rendezvous)

    def _stage(self, stage: int) -> list[SimulatedWorker]:
        settings, machine = self.settings, self.machine
        pp, tp = settings.parallelism.pp, settings.parallelism.tp
        place = StagePlace(stage, pp)
        lockstep = self.replica.stages[stage] if self.replica else Lockstep(self.events, tp)
        each = machine.layers / pp
        layers = range(round(stage * each), round((stage + 1) * each))
        workers = []
        for shard in range(tp):
            runner = SimulatedRunner(
                place,
                shard,
                layers,
                pages=machine.pages,
                page_size=settings.kv.page_size,
                max_slots=settings.scheduler.max_running,
                window=settings.window,
                held=self._is_held,
            )
            rank = stage * tp + shard
            report = partial(self.report, rank)
            worker = SimulatedWorker(self.events, runner, lockstep, machine.step_time, report)
            exchange = SimulatedExchange(place, self._wires(place, shard), worker.post)
            worker.stage = machine.make_stage(place, worker, exchange)
            workers.append(worker)
        return workers

    def _wires(self, place: StagePlace, shard: int) -> Wires:
        alone = place.stages == 1
        return Wires(
            hidden_in=None if place.first else self.hidden[place.stage - 1][shard],
            hidden_out=None if place.last else self.hidden[place.stage][shard],
            output_in=self.outputs[shard] if place.first and not alone else None,
            output_out=self.outputs[shard] if place.last and not alone else None,
        )

    def report(self, rank: int, message: Message) -> None:
        """A rank reports. All ranks of the last stage report a step's result, and the same one."""
        deliver = partial(self.receive, WORKERS, message)
        if not isinstance(message, StepDone):
            self._to_scheduler[rank].carry(deliver)
            return
        results = self._results.setdefault(message.step_id, [])
        results.append(message)
        if (results[0].tokens, results[0].logprobs) != (message.tokens, message.logprobs):
            raise ProtocolError(f"the last stage's ranks differ in step {message.step_id}")
        if len(results) == self.settings.parallelism.tp:
            del self._results[message.step_id]
        if self.workers[rank].shard == 0:
            self._to_scheduler[rank].carry(deliver)
