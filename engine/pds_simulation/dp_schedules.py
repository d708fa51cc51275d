"""Random schedules of groups of several dp ranks, all from one seed.

    python -m pds_simulation.dp_schedules [--first SEED] [--count N]

runs N of them, as pds_simulation.schedules does of groups of one. Requests fall on one rank, on
few, on all, or on all in one moment. Clocks differ, rows and wake-ups take their time, some
wake-ups come twice, schedulers stand still for seconds, and groups drain. Every schedule ends with
all requests answered rightly or given up, nothing left behind, one gather a pass on every rank, and
waits within their bound; where more requests come than slots, every rank fills all of its slots.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace
from pds_engine.config import (
    DelayerConfig,
    KvConfig,
    ParallelConfig,
    PipelineConfig,
    SchedulerConfig,
)
from pds_engine.errors import PdsError
from pds_engine.messages import Drain, Role, Sampling, Submit
from pds_engine.scheduler.settings import Settings

from pds_simulation import schedules
from pds_simulation.agreement import peaks
from pds_simulation.cluster import Cluster
from pds_simulation.events import TRUE, Clock, Events
from pds_simulation.group import CLIENT, Machine, instant
from pds_simulation.replicas import Between, DataParallelGroup
from pds_simulation.schedules import (
    LONGEST,
    MOST,
    PAGE,
    random_delay,
    random_request,
    random_step_time,
    random_window,
)
from pds_simulation.wire import Delay

MOST_EVENTS = 2_000_000
"""In one schedule; the longest has a tenth of it."""

LEASES = 100.0
"""Seconds after which one side of a hand-over has given up what the other has given up before."""


@dataclass(slots=True)
class Schedule:
    """Groups with requests put to them, not yet run."""

    events: Events
    groups: list[DataParallelGroup] = field(default_factory=list)
    cluster: Cluster | None = None
    """Where they hand requests over to each other."""
    full: bool = False
    """More requests come than there are slots, on every rank."""

    def run(self) -> None:
        """Until nothing happens any more.

        Raises:
            PdsError: something goes on for ever, or is wrong in the end.
        """
        self.events.run(most=MOST_EVENTS)
        if self.cluster is not None and self.cluster.faults():
            self.events.after(LEASES, lambda: None)
            self.events.run(most=2 * MOST_EVENTS)
        if faults := self.faults():
            raise PdsError("; ".join(faults))

    def faults(self) -> list[str]:
        """What is wrong if nothing more is to happen."""
        if self.cluster is None:
            found = [fault for group in self.groups for fault in group.faults()]
        else:
            found = self.cluster.faults()
            found += [fault for group in self.groups for fault in group.disagreements()]
        return [*found, *(self._unfilled() if self.full else [])]

    def _unfilled(self) -> list[str]:
        """sglang #30294: every rank stayed one request below its maximum."""
        return [
            f"dp rank {rank} never ran more than {most} requests at once"
            for group in self.groups
            for rank, most in enumerate(peaks(group.settings, group.bus.passes))
            if most < group.settings.scheduler.max_running
        ]


def schedule(seed: int) -> Schedule:
    """Groups of some layout with some requests put to them, all by `seed`."""
    rng, window = random.Random(seed), random_window(seed)
    kind = rng.random()
    if kind < 0.05:
        return _full(rng, window)
    return _handed_over(rng, window) if kind < 0.2 else _unified(rng, window)


def _unified(rng: random.Random, window: int | None) -> Schedule:
    made = Schedule(Events())
    settings = random_settings(rng, "unified", window)
    talk, dp = _talk(rng), settings.parallelism.dp
    machine, between = _machine(rng, settings, talk.pages), random_between(rng, dp)
    group = DataParallelGroup(made.events, settings, machine, between)
    made.groups.append(group)
    over = rng.choice([0.0, 0.01, 0.1, 1.0])
    to = random_ranks(rng, dp)
    for number in range(rng.randint(1, 5 * dp)):
        at, rank = rng.uniform(0, over), to()
        group.submit(random_request(rng, f"r{number}", at, talk.longest, talk.most), rank, at)
        if rng.random() < 0.25:
            group.ranks[rank].cancel(f"r{number}", at + rng.expovariate(4 / (over or 0.1)))
    if rng.random() < 0.1:
        at, order = rng.uniform(0, over), Drain(deadline_seconds=rng.choice([0.0, 0.05, 1.0]))
        for one in group.ranks:
            made.events.at(at, partial(one.receive, CLIENT, order))
    return made


def _handed_over(rng: random.Random, window: int | None) -> Schedule:
    """A group of each role, with dp ranks of its own."""
    events = Events()
    cluster = Cluster(events, random_delay(rng))
    made, talk = Schedule(events, cluster=cluster), _talk(rng)
    roles: tuple[Role, Role] = ("prefill", "decode")
    for role in roles:
        settings = random_settings(rng, role, window)
        machine = _machine(rng, settings, talk.pages)
        between = random_between(rng, settings.parallelism.dp)
        group = DataParallelGroup(events, settings, machine, between, f"{role}-")
        made.groups.append(group)
        for rank in group.ranks:
            cluster.join(rank)
    over = rng.choice([0.0, 0.01, 0.1, 1.0])
    choose = [random_ranks(rng, group.settings.parallelism.dp) for group in made.groups]
    for number in range(rng.randint(1, 12)):
        at, name = rng.uniform(0, over), f"r{number}"
        prefill, decode = (chosen() for chosen in choose)
        request = random_request(rng, name, at, talk.longest, talk.most)
        # A side gives up by its own clock, and the other goes by its own, which may be far behind.
        request = replace(request, deadline=None, resumable=rng.random() < 0.7)
        cluster.submit(request, prefill, decode, at)
        if rng.random() < 0.25:
            gone = at + rng.expovariate(4 / (over or 0.1))
            cluster.prefill[prefill].cancel(name, gone)
            cluster.decode[decode].cancel(name, gone)
    return made


class Talk(NamedTuple):
    """What requests are like, and the pages that a rank has for them."""

    longest: int
    """Tokens of a prompt."""
    most: int
    """Tokens of an answer."""
    pages: int


def _talk(rng: random.Random) -> Talk:
    if rng.random() < 0.3:  # short prompts, long answers: many grow at once on few pages
        return Talk(8, MOST, 16)
    return Talk(LONGEST, 12, rng.randint(16, 48))


def _full(rng: random.Random, window: int | None) -> Schedule:
    """Long answers, at once, on pages that suffice for all."""
    made = Schedule(Events(), full=True)
    settings = random_settings(rng, "unified", window, most_running=5)
    dp, running = settings.parallelism.dp, settings.scheduler.max_running
    machine = _machine(rng, settings, 32 * running)
    between = random_between(rng, dp)
    group = DataParallelGroup(made.events, settings, machine, between)
    made.groups.append(group)
    for number in range((running + 2) * dp):
        prompt = tuple(rng.randrange(997) for _ in range(rng.randint(1, 8)))
        sampling = Sampling(max_tokens=rng.randint(70, 90))
        request = Submit(request_id=f"r{number}", prompt_ids=prompt, sampling=sampling, seed=number)
        group.submit(request, number % dp)
    return made


def random_ranks(rng: random.Random, dp: int) -> Callable[[], int]:
    """Where requests go: all to one rank, most to few, or anywhere."""
    favourite = rng.randrange(dp)
    share = rng.choice([0.0, 0.0, 0.8, 1.0])
    return lambda: favourite if rng.random() < share else rng.randrange(dp)


def random_settings(
    rng: random.Random, role: Role, window: int | None = None, most_running: int = 8
) -> Settings:
    """A layout of up to 8 dp ranks and 3 stages, with bounds that are often tight."""
    running = rng.randint(1, most_running)
    chunk = rng.choice([4, 8, 16, 1000])
    return Settings(
        window=window,
        role=role,
        parallelism=ParallelConfig(
            dp=rng.choice([2, 2, 2, 3, 3, 4, 5, 8]), pp=rng.randint(1, 3), tp=rng.choice([1, 1, 2])
        ),
        kv=KvConfig(page_size=PAGE),
        pipeline=PipelineConfig(skip_output=rng.random() < 0.9),
        scheduler=SchedulerConfig(
            max_running=running,
            max_waiting=64,
            chunk_size=chunk,
            max_step_tokens=chunk + rng.choice([8, 64]),
            chunked_prefill=rng.choice(["mixed", "mixed", "separate"]),
            async_scheduling=rng.random() < 0.8,
            prefix_cache=rng.random() < 0.7,
            dynamic_chunks=rng.random() < 0.1,
        ),
        delayer=DelayerConfig(
            enabled=rng.choice([None, None, None, True, False]),
            max_ticks=rng.choice([1, 2, 5, 30, 30]),
            rest_ticks=rng.choice([0, 1, 1, 4]),
            low_watermark=rng.choice([0.0, 0.2, 1.0]),
            max_seconds=rng.choice([0.01, 5.0]),
        ),
    )


def random_between(rng: random.Random, dp: int) -> Between:
    """Clocks that differ and drift, delays, wake-ups that come twice, schedulers that pause."""
    clocks: Sequence[Clock] = [
        Clock(rng.choice([0.0, rng.random(), rng.uniform(0, 1e3)]), rng.gauss(0, 0.01))
        for _ in range(dp)
    ]
    alike = rng.random() < 0.2
    pauses = rng.random() < 0.2
    return Between(
        random_delay(rng),
        repeats=rng.choice([1, 1, 2]),
        clocks=[TRUE] * dp if alike else clocks,
        pause=_pauses(rng) if pauses else instant,
    )


def _pauses(rng: random.Random) -> Delay:
    return lambda: rng.uniform(0.5, 3.0) if rng.random() < 0.003 else 0.0


def _machine(rng: random.Random, settings: Settings, pages: int) -> Machine:
    return Machine(
        pages=pages,
        layers=4,
        step_time=random_step_time(rng, settings.parallelism.pp),
        link=random_delay(rng),
        control=random_delay(rng),
        tick=0.1,
        rendezvous=rng.random() < 0.5,
    )


def explore(first: int, count: int) -> list[tuple[int, PdsError]]:
    """The seeds, of `count` from `first` on, that end wrongly, and how."""
    return schedules.explore(first, count, schedule)


if __name__ == "__main__":
    schedules.main(schedule, __doc__)
