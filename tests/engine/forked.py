"""Processes of tests that are forks of one which has imported torch: seconds sooner each.

They share imports alone. What they run, and how they speak with each other, is what processes of an
interpreter of their own would: `test_launch.py` starts those.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import TimeoutExpired

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pds_engine.worker.process", "pds_engine.scheduler.process"])


class Forked:
    """A process, by the names that subprocess.Popen has for what it does.

    `function` is one of a file's top level. What it says on standard error goes to the file `log`.
    """

    def __init__(self, log: Path, function: Callable[..., None], *arguments: object) -> None:
        self._process = _context.Process(target=_run, args=(log, function, *arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def child(log: Path, kind: str, folder: Path) -> Forked:
    """`python -m pds_engine.child KIND FOLDER LAUNCH`."""
    return Forked(log, _child, kind, str(folder))


def _child(kind: str, folder: str) -> None:
    from pds_engine.child import main

    sys.argv[1:] = [kind, folder, str(os.getppid())]
    main()


def _run(log: Path, function: Callable[..., None], *arguments: object) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    function(*arguments)


def one_rank(rank: int, size: int, port: int, file: str, name: str, options: str, to: str) -> None:
    """One rank of a test: see the fixture `ranks`."""
    import importlib.util
    from datetime import timedelta

    import torch
    import torch.distributed as dist
    from pds_engine.parallel.collectives import Collectives

    timeout = timedelta(seconds=60)
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("asked", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["asked"] = module
    spec.loader.exec_module(module)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    collectives = Collectives(dist.group.WORLD, rank, size)
    found = getattr(module, name)(collectives, **json.loads(options))
    Path(to).write_text(json.dumps(found))
    dist.destroy_process_group()
