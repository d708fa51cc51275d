"""Random schedules: delays, stalls, arrivals, cancels and deadlines, all from one seed.

    python -m pds_simulation.schedules [--first SEED] [--count N]

runs N of them and names the first seed that ends in anything but every request answered rightly or
given up, and nothing left behind.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import Protocol

from pds_engine.config import KvConfig, ParallelConfig, PipelineConfig, SchedulerConfig
from pds_engine.errors import PdsError
from pds_engine.messages import Sampling, Submit
from pds_engine.scheduler.settings import Settings

from pds_simulation.events import Events
from pds_simulation.group import Group, Machine
from pds_simulation.wire import Delay
from pds_simulation.worker import StepTime

PAGE = 4
LONGEST = 48
"""Tokens of a prompt."""
MOST = 40
"""Tokens of an answer."""
STALL = 0.02
"""The share of steps in which a rank stands still for a while."""
WORDS = 5
"""Different tokens in prompts: few, so that prompts have beginnings in common."""


def schedule(seed: int) -> Group:
    """A group of some layout with some requests put to it, all by `seed`; not yet run."""
    rng = random.Random(seed)
    talkative = rng.random() < 0.3
    """Short prompts and long answers: many requests grow at once on few pages."""
    longest, most = (8, MOST) if talkative else (LONGEST, 12)
    settings = _settings(rng, talkative).model_copy(update={"window": random_window(seed)})
    machine = Machine(
        pages=24 if talkative else rng.randint(16, 48),
        layers=4,
        step_time=random_step_time(rng, settings.parallelism.pp),
        link=random_delay(rng),
        control=random_delay(rng),
        tick=0.1,
        rendezvous=rng.random() < 0.5,
    )
    group = Group(Events(), settings, machine)
    over = rng.choice([0.01, 0.1, 1.0])
    """Seconds in which the requests come."""
    for number in range(10 if talkative else rng.randint(1, 10)):
        at = rng.uniform(0, over)
        group.submit(random_request(rng, f"r{number}", at, longest, most), at)
        if rng.random() < 0.25:
            group.cancel(f"r{number}", at + rng.expovariate(4 / over))
    return group


def random_window(seed: int) -> int | None:
    """The model's sliding window, of few tokens; of half of the schedules it has none.

    It has numbers of its own: a schedule without a window is what it was before there were any.
    """
    rng = random.Random(f"window {seed}")
    return rng.choice([None, None, rng.randint(2, 2 * PAGE), rng.randint(2, LONGEST)])


def random_request(rng: random.Random, name: str, at: float, longest: int, most: int) -> Submit:
    prompt = tuple(rng.randrange(WORDS) for _ in range(rng.randint(1, longest)))
    beginning = (0, 1, 2, 3) * rng.choice([0, 0, 1, 4])
    return Submit(
        request_id=name,
        prompt_ids=(beginning + prompt)[:longest],
        sampling=Sampling(
            max_tokens=rng.randint(1, most),
            temperature=rng.choice([0.0, 1.0]),
            presence_penalty=rng.choice([0.0, 0.0, 1.0]),
            stop_token_ids=tuple(range(0, 997, 7)) if rng.random() < 0.3 else (),
            min_tokens=rng.randint(0, 3),
            logprobs=rng.choice([None, None, 2]),
        ),
        seed=rng.randrange(1 << 30),
        priority=rng.choice([0, 0, 1]),
        deadline=at + rng.uniform(0, 1) if rng.random() < 0.05 else None,
    )


def random_delay(rng: random.Random) -> Delay:
    mean = rng.choice([0.0, 0.0002, 0.003, 0.02])
    return (lambda: rng.expovariate(1 / mean)) if mean else (lambda: 0.0)


def _settings(rng: random.Random, talkative: bool) -> Settings:
    layout = ParallelConfig(pp=rng.randint(1, 4), tp=rng.choice([1, 1, 2]))
    running = 8 if talkative else rng.randint(1, 8)
    waiting = rng.choice([2, 64, 64, 64])
    chunk = rng.choice([4, 8, 16, 1000])
    step = chunk + rng.choice([8, 64])
    pipeline = PipelineConfig(skip_output=rng.random() < 0.9)
    bounds = SchedulerConfig(
        max_running=running,
        max_waiting=waiting,
        chunk_size=chunk,
        max_step_tokens=step,
        async_scheduling=rng.random() < 0.9,
        prefix_cache=rng.random() < 0.7,
        step_timeout=1e6,
    )
    return Settings(
        parallelism=layout, kv=KvConfig(page_size=PAGE), scheduler=bounds, pipeline=pipeline
    )


def random_step_time(rng: random.Random, stages: int) -> StepTime:
    """Stages of unlike speed. Now and then one stands still."""
    base = [rng.uniform(0.001, 0.01) for _ in range(stages)]
    spread = rng.choice([0.0, 1.0, 5.0])

    def seconds(stage: int, tokens: int, context: int) -> float:
        stall = rng.uniform(0.1, 1.0) if rng.random() < STALL else 0.0
        return base[stage] * (1 + spread * rng.random()) + stall

    return seconds


class Runs(Protocol):
    """A schedule that is ready to run."""

    def run(self) -> object: ...


def explore(
    first: int, count: int, make: Callable[[int], Runs] = schedule
) -> list[tuple[int, PdsError]]:
    """The seeds, of `count` from `first` on, that end wrongly, and how."""
    wrong = []
    for seed in range(first, first + count):
        try:
            make(seed).run()
        except PdsError as error:
            wrong.append((seed, error))
    return wrong


def main(make: Callable[[int], Runs] = schedule, about: str | None = __doc__) -> None:
    """Run as many as are asked for, and say which end wrongly."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    begun = time.process_time()
    wrong = explore(asked.first, asked.count, make)
    for seed, error in wrong:
        print(f"seed {seed}: {type(error).__name__}: {error}")
    spent = time.process_time() - begun
    print(f"{asked.count} schedules, {len(wrong)} wrong, {spent:.1f} s of CPU")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
