"""Simulates the operator's cluster, run after run, and prints the trace of the first that fails.

python tests/operator/simulate.py --runs 20000 --processes 2
python tests/operator/simulate.py --seed 4711 --runs 1
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from simulation.memory import remembering
from simulation.world import Failed, Told, run

BATCH = 50
TELL = 1_000
memory = ExitStack()


def batch(seeds: range) -> tuple[list[Told], list[tuple[int, str, str]]]:
    """What the runs tell, and of those that failed (seed, reason, trace)."""
    told, failed = [], []
    for seed in seeds:
        try:
            told.append(run(seed))
        except Failed as error:
            failed.append((seed, error.reason, str(error)))
    return told, failed


def begin() -> None:
    """A process begins, and remembers to its end."""
    memory.enter_context(remembering())


def batches(first: int, runs: int) -> Iterator[range]:
    for start in range(first, first + runs, BATCH):
        yield range(start, min(start + BATCH, first + runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first run's seed")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    began, failures, done = time.perf_counter(), 0, 0
    totals = dict.fromkeys((field.name for field in dataclasses.fields(Told)), 0.0)
    with ProcessPoolExecutor(given.processes, initializer=begin) as pool:
        for told, failed in pool.map(batch, batches(given.seed, given.runs)):
            for seed, reason, trace in failed:
                print(f"seed {seed}: {reason}" if failures else trace, flush=True)
                failures += 1
            for name in totals:
                totals[name] += sum(getattr(each, name) for each in told)
            done += len(told) + len(failed)
            if done % TELL == 0:
                print(f"{done} runs, {failures} failed", file=sys.stderr, flush=True)
    took = time.perf_counter() - began
    print(f"{given.runs} runs, {failures} failed, {took:.0f} s, {given.runs / took:.0f} a second")
    print(", ".join(f"{value:.0f} {name}" for name, value in totals.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
