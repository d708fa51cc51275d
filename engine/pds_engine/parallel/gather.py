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


class GatherThread:
    """scheduler.dp.port.GatherPort over a process group, which the thread makes itself.

    Args:
        device: where the rows lie while they are gathered: the group's own kind of device.
    """

    def __init__(self, make_group: MakeGroup, dp: int, device: torch.device = CPU) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.collectives = 0
        self.reads = 0
        """Copies from the device to the host."""
        self._make_group = make_group
        self._dp = dp
        self._device = device
        self._rows: queue.SimpleQueue[tuple[int, ...] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Gathered | GroupError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gather", daemon=True)
        self._thread.start()

    def gather(self, row: Sequence[int]) -> None:
        self._rows.put(tuple(row))

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
        self._rows.put(None)

    def _run(self) -> None:
        try:
            group = self._make_group()
            while (row := self._rows.get()) is not None:
                begun = time.monotonic()
                self._tell(Gathered(rows=self._gather(group, row), seconds=_since(begun)))
        except GroupError as error:
            self._tell(error)
        except RuntimeError as error:
            self._tell(RankLost(f"the gather among dp ranks failed: {error}"))

    def _gather(self, group: SyncGroup, row: tuple[int, ...]) -> tuple[int, ...]:
        """All ranks' `row`s, one after another. The copy at the end waits for the collective."""
        own = torch.tensor(row, dtype=torch.int64).to(self._device, non_blocking=True)
        found = own.new_empty(self._dp * len(row))
        self.collectives += 1
        group._allgather_base(found, own).wait()
        if found.is_cuda:
            self.reads += 1
        return tuple(found.tolist())

    def _tell(self, found: Gathered | GroupError) -> None:
        self._found.put(found)
        os.eventfd_write(self.descriptor, 1)


def _since(begun: float) -> float:
    return time.monotonic() - begun
