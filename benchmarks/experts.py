"""What a mixture's exchanges cost a layer on gloo: by columns, whole, and padded to fixed sizes.

    python benchmarks/experts.py

Processes on this machine; the experts' own work is left out. Prints a table in ms: each
the slowest of the fastest tenth of its calls, since other work on the machine only adds to them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.dispatch import to_experts, to_tokens

EXPERTS = 32
CASES = ((1, 4, 1024), (16, 4, 1024), (128, 4, 1024), (128, 8, 2048))
"""Tokens of each rank, experts of a token, hidden size."""
WARM = 5


def by_columns(ranks: Collectives, tokens: int, k: int, hidden: int) -> Callable[[], object]:
    x, sizes = torch.randn(tokens, hidden), (tokens,) * ranks.size
    return lambda: ranks.reduce_scatter(ranks.gather_parts(x, sizes), sizes)


def whole(ranks: Collectives, tokens: int, k: int, hidden: int) -> Callable[[], object]:
    chosen = torch.rand(tokens, EXPERTS).topk(k).indices.flatten()
    counts = torch.bincount(chosen, minlength=EXPERTS)
    rows, held = torch.randn(tokens * k, hidden), (EXPERTS // ranks.size,) * ranks.size

    def run() -> object:
        received = to_experts(rows, counts, held, ranks)
        return to_tokens(received.rows, received, ranks)

    return run


def padded(ranks: Collectives, tokens: int, k: int, hidden: int) -> Callable[[], object]:
    """Room for all of a rank's rows at every other one, so that nobody need tell a number."""
    sizes = (tokens * k,) * ranks.size
    rows, which = torch.randn(sum(sizes), hidden), torch.zeros(sum(sizes), dtype=torch.int64)

    def run() -> object:
        ranks.all_to_all(which, sizes, sizes)
        return ranks.all_to_all(ranks.all_to_all(rows, sizes, sizes), sizes, sizes)

    return run


WAYS = {"by columns": by_columns, "whole": whole, "padded": padded}


def rank(at: int, size: int, port: int, calls: int, found: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(at)
    store = dist.TCPStore("127.0.0.1", port, size, at == 0)
    group = dist.ProcessGroupGloo(store, at, size, timedelta(seconds=60))
    ranks = Collectives(group, at, size)
    for case in CASES:
        ways = [way(ranks, *case) for way in WAYS.values()]
        taken: list[list[float]] = [[] for _ in ways]
        for _ in range(WARM + calls):
            for run, times in zip(ways, taken, strict=True):
                begun = time.perf_counter()
                run()
                times.append(time.perf_counter() - begun)
        if at == 0:
            found.put([1000 * statistics.quantiles(times[WARM:], n=10)[0] for times in taken])
    ranks.all_reduce(torch.zeros(1))  # the store is at rank 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--port", type=int, default=29617)
    given = parser.parse_args()
    print(f"| ranks | tokens of each | k | hidden | {' | '.join(WAYS)} |")
    print("| --- " * (4 + len(WAYS)) + "|")
    for size in given.ranks:
        context = mp.get_context("spawn")
        found = context.SimpleQueue()
        mp.spawn(rank, (size, given.port, given.calls, found), size)
        for case in CASES:
            times = [f"{took:.2f}" for took in found.get()]
            print(f"| {size} | {' | '.join(map(str, case))} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
