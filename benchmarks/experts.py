"""What a mixture's exchanges cost a layer on gloo: by columns, whole, and padded to fixed sizes.

    python benchmarks/experts.py [--quick]

Processes on this machine; the experts' own work is left out. Times are in ms: each the slowest of
the fastest tenth of its calls, since other work on the machine only adds to them. `value` is that
of whole experts in the last case, four ranks of 128 tokens; `ratio`, padded over it.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import doing
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


def measured(size: int, calls: int) -> list[dict[str, float]]:
    """Of each case, ms of each way among `size` ranks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    found = context.SimpleQueue()
    mp.spawn(rank, (size, port, calls, found), size)
    times = [found.get() for _ in CASES]
    return [dict(zip(WAYS, (round(ms, 3) for ms in each), strict=True)) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    options = parser.parse_args()
    with doing("exchanges among two and four ranks", 120 if options.quick else 600):
        by_ranks = {size: measured(size, 10 if options.quick else 200) for size in (2, 4)}
    last = by_ranks[4][-1]
    print(
        json.dumps(
            {
                "name": "experts",
                "value": last["whole"],
                "unit": "ms a layer",
                "better": "lower",
                "baseline": last["padded"],
                "ratio": round(last["padded"] / last["whole"], 2),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "cases": [
                    dict(zip(("tokens", "k", "hidden"), case, strict=True)) for case in CASES
                ],
                "by_ranks": by_ranks,
            }
        )
    )


if __name__ == "__main__":
    main()
