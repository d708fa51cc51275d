"""Processes of a group that count their collectives themselves, where each leaves them.

What is counted is every call of a process group's collectives, in schedulers and in workers, by
wrappers around torch's own classes: the product is as it is. Numbers lie in a file of 64-bit
integers that the process maps, so that they are there whatever becomes of it.
"""

import json
import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from forked import Forked

CALLS = (
    "_allgather_base", "_reduce_scatter_base", "allgather", "allgather_coalesced",
    "allreduce", "alltoall", "alltoall_base", "barrier", "broadcast", "gather", "monitored_barrier",
    "reduce", "reduce_scatter", "scatter",
)  # fmt: skip
"""Collectives of a process group; what goes from one rank to another alone is none."""


class Counts(NamedTuple):
    """Of one process, since it began."""

    sync: int = 0
    """Collectives of the groups in which rows are gathered."""
    others: int = 0
    """All other collectives."""
    fetches: int = 0
    """RowGather's own count of copies from its device to the host."""
    copies: int = 0
    """Calls of Tensor.cpu while rows are gathered."""


_LAYOUT = Struct(f"{len(Counts._fields)}q")


def counted(log: Path, kind: str, folder: Path) -> Forked:
    """forked.child, and it counts."""
    return Forked(log, _child, kind, str(folder))


def counts(folder: Path, kind: str) -> Counts:
    return Counts(*_LAYOUT.unpack((folder / f"counts-{kind}").read_bytes()))


def gathers(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Each RowGather that the process has made: its group's `backend` and `ranks`, the `device` of
    its rows, and whether it takes them to be `on_device`."""
    lines = (folder / f"gathers-{kind}").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _child(kind: str, folder: str) -> None:
    from pds_engine.child import main

    _count(Path(folder), kind)
    sys.argv[1:] = [kind, folder, str(os.getppid())]
    main()


def _count(folder: Path, kind: str) -> None:
    import torch
    import torch.distributed as dist
    from pds_engine.parallel.gather import RowGather
    from torch._C._distributed_c10d import Backend

    path, made = folder / f"counts-{kind}", folder / f"gathers-{kind}"
    path.write_bytes(bytes(_LAYOUT.size))
    made.touch()
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), _LAYOUT.size)
    numbers, lock = dict.fromkeys(Counts._fields, 0), threading.Lock()
    groups: list[object] = []
    here = threading.local()
    begin, gather, to_host = RowGather.__init__, RowGather.gather, torch.Tensor.cpu

    def put(name: str, number: int | None = None) -> None:
        """One more, or so many."""
        with lock:
            numbers[name] = numbers[name] + 1 if number is None else number
            shared[:] = _LAYOUT.pack(*numbers.values())

    def calls(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: object, *args: Any, **keys: Any) -> Any:
            put("sync" if any(group is each for each in groups) else "others")
            return real(group, *args, **keys)

        return call

    def begins(self: Any, group: Any, device: torch.device, *, on_device: bool) -> None:
        begin(self, group, device, on_device=on_device)
        groups.append(group)
        note = {
            "backend": group.name(), "ranks": group.size(),
            "device": device.type, "on_device": on_device,
        }  # fmt: skip
        with made.open("a") as file:
            file.write(json.dumps(note) + "\n")

    def gathers_rows(self: Any, row: Any) -> Any:
        here.gathering = True
        found = gather(self, row)
        here.gathering = False
        put("fetches", self.fetches)
        return found

    def copies(self: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        if getattr(here, "gathering", False):
            put("copies")
        return to_host(self, *args, **keys)

    for each in (dist.ProcessGroup, Backend):
        for name in CALLS:
            if hasattr(each, name):
                setattr(each, name, calls(getattr(each, name)))
    RowGather.__init__, RowGather.gather = begins, gathers_rows  # type: ignore[method-assign]
    torch.Tensor.cpu = copies  # type: ignore[method-assign]
