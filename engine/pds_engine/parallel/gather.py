"""One collective a pass among the dp ranks of a group, on a thread of its own (data-parallel.md).

The thread waits in the collective; whoever asked polls a descriptor and goes on with its work. The
group is the gather's own: nothing else may come between two of its calls.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from pds_engine.errors import GroupError, RankLost
from pds_engine.messages import Gathered

_LEAST_TIMEOUT = timedelta(seconds=1800)
"""gloo's own. A rank that is late delays the others; for how long is the scheduler's to say."""
CPU = torch.device("cpu")


class SyncGroup(Protocol):
    """What is asked of a process group."""

    def size(self) -> int: ...
    def _allgather_base(self, output: Tensor, input: Tensor) -> dist.Work: ...


MakeGroup = Callable[[], SyncGroup]


def among_schedulers(dp_rank: int, dp: int, rendezvous: str, seconds: float) -> SyncGroup:
    """gloo among the schedulers of a group, which are all in its leader pod.

    They meet at the workers' store, which rank 0 opens once all ranks have joined.

    Raises:
        RankLost: they have not met in `seconds`.
    """
    host, _, port = rendezvous.rpartition(":")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=seconds)
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=patience)
        met = PrefixStore("schedulers", store)
        met.set(f"here/{dp_rank}", "1")
        met.wait([f"here/{other}" for other in range(dp)], patience)
        gloo = dist.ProcessGroupGloo(met, dp_rank, dp, max(_LEAST_TIMEOUT, patience))
        return cast(SyncGroup, gloo)  # the stubs leave some of its methods out
    except (OSError, RuntimeError) as error:
        raise RankLost(f"the {dp} schedulers did not meet in {seconds:g} s: {error}") from error


class RowGather:
    """The collective itself, and what it costs: both are counted.

    Args:
        device: where the rows lie while they are gathered: the group's own kind of device.
        on_device: the rows are on a device, as far as this class is concerned, and are fetched.
            (gloo stands in for NCCL where there is no GPU.)
    """

    def __init__(self, group: SyncGroup, device: torch.device, *, on_device: bool) -> None:
        self.collectives = 0
        self.fetches = 0
        """Copies from the device to the host: one a pass on a device, none on the host."""
        self._group = group
        self._device = device
        self._on_device = on_device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def gather(self, row: Sequence[int]) -> Gathered:
        """All ranks' rows. Blocks until the last one has come.

        Raises:
            RankLost: another rank is gone.
        """
        begun = time.monotonic()
        try:
            with torch.cuda.stream(self._stream):  # of None: the current one
                found = self._collect(torch.tensor(row, dtype=torch.int64))
        except RuntimeError as error:
            raise RankLost(f"the gather among dp ranks failed: {error}") from error
        return Gathered(rows=found, seconds=time.monotonic() - begun)

    def _collect(self, row: Tensor) -> tuple[int, ...]:
        own = row.to(self._device, non_blocking=True)
        found = own.new_empty(self._group.size() * len(own))
        self.collectives += 1
        self._group._allgather_base(found, own).wait()
        if self._on_device:
            self.fetches += 1
            found = found.cpu()
        return tuple(found.tolist())


class GatherThread:
    """scheduler.dp.port.GatherPort over a group of hosts, which the thread makes itself."""

    def __init__(self, make_group: MakeGroup) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.rows: RowGather | None = None
        """Once the ranks have met."""
        self._make_group = make_group
        self._asked: queue.SimpleQueue[tuple[int, ...] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Gathered | GroupError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gather", daemon=True)
        self._thread.start()

    def gather(self, row: Sequence[int]) -> None:
        self._asked.put(tuple(row))

    def take(self) -> Gathered | None:
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return None
        found = self._found.get_nowait()
        if isinstance(found, GroupError):
            raise found
        return found

    def close(self) -> None:
        """The thread may be waiting for ranks that never come; it ends with the process."""
        self._asked.put(None)

    def _run(self) -> None:
        try:
            self.rows = RowGather(self._make_group(), CPU, on_device=False)
            while (row := self._asked.get()) is not None:
                self._tell(self.rows.gather(row))
        except GroupError as error:
            self._tell(error)

    def _tell(self, found: Gathered | GroupError) -> None:
        self._found.put(found)
        os.eventfd_write(self.descriptor, 1)
