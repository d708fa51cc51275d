"""Simulates the operator's cluster, run after run, and prints the trace of the first that fails.

python tests/operator/simulate.py --runs 20000 --processes 2
python tests/operator/simulate.py --seconds 180
python tests/operator/simulate.py --seed 4711 --runs 1

With --seconds, half of the time goes to the seeds from --seed on, the same each time, and half to
seeds from a first one that is drawn and printed.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import count

from simulation.memory import remembering
from simulation.world import RunFailed, RunFigures, run

BATCH = 50
REPORT_EVERY = 1_000
memory = ExitStack()


Batch = tuple[list[RunFigures], list[tuple[int, str, str]]]


def batch(seeds: range) -> Batch:
    """The figures of the runs, and of those that failed (seed, reason, trace)."""
    figures, failed = [], []
    for seed in seeds:
        try:
            figures.append(run(seed))
        except RunFailed as error:
            failed.append((seed, error.reason, str(error)))
    return figures, failed


def begin() -> None:
    """A process begins, and remembers to its end."""
    memory.enter_context(remembering())


def batches(first: int, runs: int) -> Iterator[range]:
    for start in range(first, first + runs, BATCH):
        yield range(start, min(start + BATCH, first + runs))


def timed(first: int, seconds: float) -> Iterator[range]:
    """Batches from `first` on for half of the time, then from a drawn seed on."""
    for start in (first, random.randrange(10**6, 10**9)):
        print(f"seeds from {start} on", flush=True)
        until = time.monotonic() + seconds / 2
        for at in count(start, BATCH):
            if time.monotonic() >= until:
                break
            yield range(at, at + BATCH)


def results(pool: Executor, asked: Iterable[range], ahead: int) -> Iterator[Batch]:
    """The results of the batches, in order; `ahead` are under way at once, so that time is kept."""
    under_way: deque[Future[Batch]] = deque()
    for seeds in asked:
        under_way.append(pool.submit(batch, seeds))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, help="as many runs as fit, in place of --runs")
    parser.add_argument("--seed", type=int, default=0, help="the first run's seed")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    began, failures, done = time.perf_counter(), 0, 0
    totals = dict.fromkeys((field.name for field in dataclasses.fields(RunFigures)), 0.0)
    asked = batches(given.seed, given.runs)
    if given.seconds is not None:
        asked = timed(given.seed, given.seconds)
    with ProcessPoolExecutor(given.processes, initializer=begin) as pool:
        for figures, failed in results(pool, asked, given.processes + 1):
            for seed, reason, trace in failed:
                print(f"seed {seed}: {reason}" if failures else trace, flush=True)
                failures += 1
            for name in totals:
                totals[name] += sum(getattr(each, name) for each in figures)
            done += len(figures) + len(failed)
            if done % REPORT_EVERY == 0:
                print(f"{done} runs, {failures} failed", file=sys.stderr, flush=True)
    took = time.perf_counter() - began
    print(f"{done} runs, {failures} failed, {took:.0f} s, {done / took:.0f} a second")
    print(", ".join(f"{value:.0f} {name}" for name, value in totals.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
