"""One of several pods that begin together on one volume, each with two compile processes.

    sharing_pod.py ROOT NUMBER OF KEYS SECONDS

Prints how many artefacts it has built itself, and how many came from others, as JSON.
"""

import json
import multiprocessing
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_builds import Attempts, Fake
from pds_engine.warming.compiling import Made, compile_all
from pds_engine.warming.pool import Pool, processes
from pds_kernels.cache.sharing import Try, WorkQueue, order, place


def main() -> None:
    root, number, of, keys = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    names = [f"k{each}" for each in range(keys)]
    fakes = tuple(Fake(name, root / "log", seconds=float(sys.argv[5])) for name in names)
    queue = WorkQueue(order(names, place(number, of)), lease=20, patience=60)
    work, context = Attempts(root, f"pod-{number}", fakes), multiprocessing.get_context("fork")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    built, other = 0, 0
    with Pool(2, processes(context, work, Try), Made) as pool:
        for _, made in compile_all(queue, pool, timeout=60):
            if made.artefact is None or made.volume:
                raise SystemExit(made.volume)
            built += made.artefact.built
            other += not made.artefact.built
    print(json.dumps({"built": built, "other": other}))


if __name__ == "__main__":
    main()
