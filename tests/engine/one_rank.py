"""One rank of a test, in a process of its own: see the fixture `ranks`."""

import importlib.util
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pds_engine.parallel.collectives import Collectives

TIMEOUT = timedelta(seconds=60)


def main(rank: int, size: int, port: int, file: str, name: str, options: str, result: str) -> None:
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("asked", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["asked"] = module
    spec.loader.exec_module(module)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    collectives = Collectives(dist.group.WORLD, rank, size)
    found = getattr(module, name)(collectives, **json.loads(options))
    Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    rank, size, port, *rest = sys.argv[1:]
    main(int(rank), int(size), int(port), *rest)
