"""Policies that decide when dp ranks compute prompts, on the same traces, in virtual time.

    python benchmarks/delayer.py [--quick]
    python benchmarks/delayer.py --calibrate FILE

docs/data-parallel.md describes the costs, which machine each is of, and where the constants are
from. As yet: the published runs without their policies.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

from common import doing
from delaying.calibrate import fit, read
from delaying.costs import MACHINES
from delaying.fleet import simulate
from delaying.traces import atom_run, sglang_run, vllm_run

RUNS = {
    "vllm": ("vllm", vllm_run),
    "sglang": ("sglang", sglang_run),
    "atom 1k": ("atom", lambda: atom_run(1024)),
    "atom 8k": ("atom", lambda: atom_run(8192)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="fit a cost to its passes")
    asked = parser.parse_args()
    if asked.calibrate:
        cost, miss = fit(read(asked.calibrate))
        print(json.dumps({"name": "delayer_cost", **asdict(cost), "median_miss": round(miss, 4)}))
        return
    with doing("published runs, without their policies", 60):
        rates = {
            name: round(simulate(MACHINES[machine], trace(), lambda views: [True] * 8).rate)
            for name, (machine, trace) in RUNS.items()
        }
    print(json.dumps({"name": "delayer", "off": rates, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
