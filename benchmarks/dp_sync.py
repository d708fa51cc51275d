"""What a pass costs in synchronisation: one fused collective beside two separate ones.

    python benchmarks/dp_sync.py [--quick]

A process a dp rank, as the schedulers of a group are, with gloo between them. Each rank gives its
row (scheduler/dp/rows.py) and waits for all: in one collective, or the batch's shape in one and
what the delayer needs in a second, as engines do whose delayer came later. The two take turns in
blocks within one run. `value`: µs a pass, fused, at dp 2; `by_dp`: all widths, and what the same
gather costs when a thread makes it and a poller hears of it, which is how schedulers have it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import select
import statistics
import time
from multiprocessing.connection import Connection

from common import doing
from pds_engine.parallel.gather import CPU, GatherThread, RowGather, among_schedulers
from pds_engine.scheduler.dp.rows import WIDTH
from torch._C._distributed_c10d import TCPStore

SHAPE = 3
"""Numbers of a row that are the batch's shape."""
BLOCK = 100
WARM = 50


def rank(dp_rank: int, dp: int, port: int, blocks: int, results: Connection) -> None:
    """One dp rank; dp rank 0 reports: seconds a pass of each block, by kind."""
    meeting = f"127.0.0.1:{port}"
    group = among_schedulers(dp_rank, dp, meeting, 30)
    rows = RowGather(group, CPU, on_device=False)
    threaded = GatherThread(lambda: group)
    row = tuple(range(WIDTH))

    def fused() -> None:
        rows.gather(row)

    def separate() -> None:
        rows.gather(row[:SHAPE])
        rows.gather(row[SHAPE:])

    def by_thread() -> None:
        threaded.gather(row)
        select.select([threaded.descriptor], [], [])
        threaded.take()

    kinds = {"fused": fused, "separate": separate, "by_thread": by_thread}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for block in range(blocks):
        for name, once in kinds.items():
            for _ in range(WARM if block == 0 else 0):
                once()
            begun = time.perf_counter()
            for _ in range(BLOCK):
                once()
            found[name].append((time.perf_counter() - begun) / BLOCK)
    if dp_rank == 0:
        results.send(found)
    rows.gather(row)  # nobody leaves while another may still be in a collective
    os._exit(0)  # gloo's threads do not outlive their group quietly


def measure(dp: int, blocks: int) -> dict[str, float]:
    """µs a pass of each kind: the median of the blocks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    ranks = [
        context.Process(target=rank, args=(at, dp, store.port, blocks, theirs)) for at in range(dp)
    ]
    for process in ranks:
        process.start()
    found = ours.recv()
    for process in ranks:
        process.join()
    return {name: round(1e6 * statistics.median(each), 1) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    options = parser.parse_args()
    with doing("gathers among two to four ranks", 120 if options.quick else 600):
        by_dp = {dp: measure(dp, 3 if options.quick else 25) for dp in (2, 3, 4)}
    fused, separate = by_dp[2]["fused"], by_dp[2]["separate"]
    print(
        json.dumps(
            {
                "name": "dp_sync",
                "value": fused,
                "unit": "µs per pass",
                "better": "lower",
                "baseline": separate,
                "ratio": round(separate / fused, 2),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "by_dp": by_dp,
            }
        )
    )


if __name__ == "__main__":
    main()
