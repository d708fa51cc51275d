"""Every interleaving of what two dp ranks do and are told: model checking of park, wake and drain.

The schedulers are the engine's own. What one does next depends on what has come to it and on
nothing else, so each state of a scheduler is tried with each message once, and the pairs of such
states are explored together with the messages between them: a request comes, a plan is made, a row
or a wake-up arrives, perhaps twice and after later ones, a step is done, the group is to drain.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pds_engine.messages import (
    Drain,
    Gather,
    Gathered,
    KvEndpoint,
    Message,
    Ready,
    Sampling,
    StepDone,
    StepPlan,
    Submit,
    Wake,
)
from pds_engine.parallel.layout import Numbering
from pds_engine.scheduler.party import REPLICAS, SYNC, WORKERS, Out, Party
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings

from pds_simulation.explore import Violation

NOW = 100.0
SERVER = Party("server", "s")
PAGES = 64
PROMPT = (5, 6, 7, 8)
MOST_PASSES = 60
"""More say that ranks go on gathering for ever."""
Values = tuple[int, ...]
Kind = Literal["submit", "plan", "wake", "gathered", "done", "drain", "expire"]


class Event(NamedTuple):
    """Something that happens at one scheduler."""

    kind: Kind
    value: int = -1
    """Of a request, a pass or a step: its number."""
    rows: Values = ()


PLAN, DRAIN, EXPIRE = Event("plan"), Event("drain"), Event("expire")


class Effect(NamedTuple):
    """What a scheduler says upon an event, as far as the other may hear of it."""

    row: Values = ()
    wakes: tuple[int, ...] = ()
    steps: tuple[tuple[int, Values], ...] = ()
    """Number and shape of those that it issues."""


@dataclass(slots=True)
class Place:
    """One state of one scheduler."""

    history: tuple[Event, ...]
    """A way to it."""
    live: int
    """Requests that have not ended."""
    resting: bool
    """It is parked, in no pass, with no step in flight."""
    next_pass: int
    oldest: int
    """The oldest step in flight, or -1."""
    after: dict[Event, tuple[int, Effect]] = field(default_factory=dict)
    """Where each event leads that was tried, and what it makes it say."""


class World(NamedTuple):
    """What tells one moment of both ranks from another. Each pair is of rank 0 and rank 1."""

    at: tuple[int, int]
    """The place of each scheduler."""
    asked: tuple[int, int] = (0, 0)
    """Requests that have come."""
    stale: tuple[bool, bool] = (True, True)
    """Something has come since the last plan."""
    given: tuple[Values, Values] = ((), ())
    """The row of this pass, once it is given and until the other's is."""
    rows: tuple[Values, Values] = ((), ())
    """What was gathered, on its way."""
    wakes: tuple[Values, Values] = ((), ())
    """Wake-ups on their way to it."""
    ahead: tuple[tuple[int, Values], ...] = ()
    """Steps that only one has issued."""
    drain: tuple[int, int] = (0, 0)
    """1: it has been told to drain; 2: its deadline has passed."""


class Pair:
    """Two dp ranks, to which so many requests come each.

    Args:
        tokens: output tokens of each request.
        drains: the group is told to drain, at any moment.
        repeats: how often each wake-up comes.
    """

    def __init__(
        self,
        settings: Settings,
        requests: tuple[int, int],
        tokens: int = 2,
        *,
        drains: bool = False,
        repeats: int = 2,
    ) -> None:
        self._schedulers = [_Places(settings, rank, tokens) for rank in (0, 1)]
        self._requests = requests
        self._drains = drains
        self._repeats = repeats

    def explore(self) -> int:
        """Go through all states; how many there are.

        Raises:
            Violation: some order of events leads to a deadlock, to a request that never ends, to
                ranks that do not rest in the end, or to steps that differ.
        """
        first = World((0, 0))
        came_from: dict[World, tuple[World, int, Event] | None] = {first: None}
        unseen = deque([first])
        while unseen:
            world = unseen.popleft()
            try:
                following = [
                    (rank, event, self._moved(world, rank, event))
                    for rank in (0, 1)
                    for event in self._events(world, rank)
                ]
                if not following:
                    self._check_rest(world)
            except Violation as violation:
                raise Violation(f"{violation}, after {_story(world, came_from)}") from None
            for rank, event, reached in following:
                if reached not in came_from:
                    came_from[reached] = world, rank, event
                    unseen.append(reached)
        return len(came_from)

    @property
    def places(self) -> int:
        """States of the two schedulers, each by itself."""
        return sum(len(places.found) for places in self._schedulers)

    # ---- steps of the above ------------------------------------------------------------------

    def _events(self, world: World, rank: int) -> Iterator[Event]:
        """What may happen next at this rank."""
        place = self._schedulers[rank].found[world.at[rank]]
        if world.asked[rank] < self._requests[rank]:
            yield Event("submit", world.asked[rank])
        if world.stale[rank]:
            yield PLAN
        if world.rows[rank]:
            yield Event("gathered", rows=world.rows[rank])
        for pass_id in sorted(set(world.wakes[rank])):
            yield Event("wake", pass_id)
        # A step's collectives need both ranks.
        if place.oldest >= 0 and all(place.oldest != step for step, _ in world.ahead):
            yield Event("done", place.oldest)
        if self._drains and world.drain[rank] < 2:
            yield DRAIN if world.drain[rank] == 0 else EXPIRE

    def _moved(self, world: World, rank: int, event: Event) -> World:
        at, effect = self._schedulers[rank].step(world.at[rank], event)
        world = world._replace(
            at=_put(world.at, rank, at), stale=_put(world.stale, rank, event.kind != "plan")
        )
        match event.kind:
            case "submit":
                world = world._replace(asked=_put(world.asked, rank, event.value + 1))
            case "gathered":
                world = world._replace(rows=_put(world.rows, rank, ()))
            case "wake":
                left = list(world.wakes[rank])
                left.remove(event.value)
                world = world._replace(wakes=_put(world.wakes, rank, tuple(left)))
            case "drain" | "expire":
                world = world._replace(drain=_put(world.drain, rank, world.drain[rank] + 1))
        return self._heard(world, rank, effect)

    def _heard(self, world: World, rank: int, effect: Effect) -> World:
        other = 1 - rank
        if effect.wakes:
            coming = tuple(sorted((*world.wakes[other], *effect.wakes * self._repeats)))
            world = world._replace(wakes=_put(world.wakes, other, coming))
        if effect.row:
            world = world._replace(given=_put(world.given, rank, effect.row))
            if all(world.given):
                rows = (*world.given[0], *world.given[1])
                if world.rows != ((), ()):
                    raise Violation("a pass is gathered before the last one's rows have come")
                world = world._replace(given=((), ()), rows=(rows, rows))
        ahead = dict(world.ahead)
        for step, shape in effect.steps:
            if step not in ahead:
                ahead[step] = shape
            elif ahead.pop(step) != shape:
                raise Violation(f"the ranks' shapes of step {step} differ")
        return world._replace(ahead=tuple(sorted(ahead.items())))

    def _check_rest(self, world: World) -> None:
        found = []
        for rank, number in enumerate(world.at):
            place = self._schedulers[rank].found[number]
            if place.live:
                found.append(f"rank {rank} has {place.live} requests")
            if not place.resting:
                found.append(f"rank {rank} does not rest in pass {place.next_pass}")
        if found or any(world.given) or world.ahead:
            raise Violation(f"nothing happens any more: {', '.join(found)}")


class _Places:
    """The states that one rank's scheduler comes to, and how it comes from one to another."""

    def __init__(self, settings: Settings, dp_rank: int, tokens: int) -> None:
        self._settings = settings
        self._dp_rank = dp_rank
        self._tokens = tokens
        self._known: dict[object, int] = {}
        self.found: list[Place] = []
        self._place(self._made(()), ())

    def step(self, at: int, event: Event) -> tuple[int, Effect]:
        """Where `event` leads from that place, and what is said."""
        place = self.found[at]
        if event not in place.after:
            scheduler = self._made(place.history)
            effect = _effect(self._do(scheduler, event))
            if scheduler.planner.passes.next_id > MOST_PASSES:
                raise Violation("passes go on for ever")
            place.after[event] = self._place(scheduler, (*place.history, event)), effect
        return place.after[event]

    def _made(self, history: Sequence[Event]) -> Scheduler:
        scheduler = Scheduler(self._settings, "explored", self._dp_rank)
        split = self._settings.parallelism
        numbering = Numbering.of(split)
        for stage in range(split.pp):
            for rank in numbering.attention(stage, self._dp_rank):
                endpoint = KvEndpoint(rank=rank, shard=b"", pages=PAGES, backends={})
                ready = Ready(rank=rank, pages=PAGES, kv_fingerprint="f", endpoint=endpoint)
                scheduler.handle(WORKERS, ready, NOW)
        for event in history:
            self._do(scheduler, event)
        return scheduler

    def _do(self, scheduler: Scheduler, event: Event) -> list[Out]:
        match event.kind:
            case "plan":
                return scheduler.plan(NOW)
            case "expire":
                return scheduler.tick(NOW)
            case "submit":
                return scheduler.handle(SERVER, self._request(event.value), NOW)
            case "wake":
                return scheduler.handle(REPLICAS, Wake(pass_id=event.value), NOW)
            case "gathered":
                return scheduler.handle(SYNC, Gathered(rows=event.rows), NOW)
            case "drain":
                return scheduler.handle(SERVER, Drain(deadline_seconds=0.0), NOW)
            case "done":
                count = len(scheduler.steps.in_flight[0].samplers)
                done = StepDone(step_id=event.value, tokens=(9,) * count, logprobs=(), elapsed=0.0)
                return scheduler.handle(WORKERS, done, NOW)

    def _request(self, number: int) -> Submit:
        sampling = Sampling(max_tokens=self._tokens)
        return Submit(request_id=f"r{number}", prompt_ids=PROMPT, sampling=sampling, seed=1)

    def _place(self, scheduler: Scheduler, history: tuple[Event, ...]) -> int:
        key = _key(scheduler)
        if key not in self._known:
            self._known[key] = len(self.found)
            passes, in_flight = scheduler.planner.passes, scheduler.steps.in_flight
            self.found.append(
                Place(
                    history,
                    live=len(scheduler.ledger.requests),
                    resting=passes.parked and not passes.gathering and not in_flight,
                    next_pass=passes.next_id,
                    oldest=in_flight[0].plan.step_id if in_flight else -1,
                )
            )
        return self._known[key]


def _effect(out: Sequence[Out]) -> Effect:
    messages: list[Message] = [item.message for item in out]
    return Effect(
        row=next((m.row for m in messages if isinstance(m, Gather)), ()),
        wakes=tuple(m.pass_id for m in messages if isinstance(m, Wake)),
        steps=tuple((m.step_id, m.dp_tokens) for m in messages if isinstance(m, StepPlan)),
    )


def _key(scheduler: Scheduler) -> object:
    """All that the scheduler's further life depends on; page numbers are nobody's concern here."""
    planner, ledger = scheduler.planner, scheduler.ledger
    passes, steps = planner.passes, planner.steps
    proposed = [
        (tuple(r.id for r in picked.decodes), tuple((r.id, *c) for r, c in picked.chunks))
        for picked in planner._proposal
    ]
    requests = [
        (r.id, r.phase, r.computed, r.planned, len(r.outputs), r.dropped, len(r.pages), r.last_step)
        for r in ledger.requests.values()
    ]
    return (
        (passes.next_id, passes.gathering, passes.parked, max(passes._woken, passes.next_id - 1)),
        (steps.next_id, ledger.done, steps._alternation.shortest, steps._alternation.decodes),
        tuple((each.plan, tuple(r.id for r in each.samplers)) for each in steps.in_flight),
        tuple(proposed),
        tuple(sorted(requests)),
        (tuple(r.id for r in ledger.decoding), tuple(r.id for r in ledger.prefilling)),
        (ledger.decodes, ledger.running, ledger.pool.used, ledger.pool.promised),
        planner._delayer.wait if planner._delayer else None,
        (scheduler.draining, scheduler.rests_until > NOW),
    )


def _put(pair: tuple, rank: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (pair[0], value) if rank else (value, pair[1])


def _story(world: World, came_from: dict[World, tuple[World, int, Event] | None]) -> str:
    events = []
    while (step := came_from[world]) is not None:
        world, rank, event = step
        number = f" {event.value}" if event.value >= 0 else ""
        events.append(f"{event.kind}{number} at {rank}")
    return ", ".join(reversed(events)) or "nothing"
