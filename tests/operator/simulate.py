"""Simulates the operator's cluster, run after run: `python tests/operator/simulate.py --help`."""

import argparse
import sys
import time

from simulation.memory import remembering
from simulation.world import Failed, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first run's seed")
    given = parser.parse_args()
    began, failed = time.process_time(), 0
    totals = {"seconds": 0.0, "rounds": 0, "writes": 0, "served": 0, "events": 0}
    with remembering():
        for seed in range(given.seed, given.seed + given.runs):
            try:
                told = run(seed)
            except Failed as error:
                failed += 1
                if failed == 1:
                    print(error)
                else:
                    print(f"seed {seed}: {error.reason}")
                continue
            for name in totals:
                totals[name] += getattr(told, name)
    took = time.process_time() - began
    print(
        f"{given.runs} runs, {failed} failed, {took:.1f} s, {given.runs / took:.0f} a second; {totals}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
