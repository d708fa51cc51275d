"""Gathers the dp ranks' rows on the device, for this replica's scheduler (parallel.sync: device).

A thread with a connection, a communicator and on a GPU a stream of its own: with asynchronous
scheduling the gather of pass n + 1 runs while step n computes, and must not queue behind it.
"""

import torch
import torch.distributed as dist
import zmq

from pds_engine.config import EngineConfig
from pds_engine.errors import GroupError
from pds_engine.keys import Keys
from pds_engine.messages import Gather, Hello
from pds_engine.parallel.gather import RowGather
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.sync import sync_mode
from pds_engine.wire import Link
from pds_engine.worker.side import SideThread


def gathers(config: EngineConfig, rank: int) -> bool:
    """Whether this rank gathers for its scheduler: the first stage's first shard may."""
    place = Numbering.of(config.parallelism).place(rank)
    return sync_mode(config) == "device" and (place.stage, place.tp) == (0, 0)


class SyncThread(SideThread):
    """Answers each Gather of the scheduler at `address` with Gathered, until that one has gone.

    Raises:
        GroupError: there is no group of devices to gather in. There is no other way then: ranks
            that fell back to one would wait for those that did not.
    """

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        address: str,
        keys: Keys,
        hello: Hello,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        if group is None:
            raise GroupError("dp.sync_device: device, and this rank has no group to gather in")
        super().__init__(context, address, keys, hello)
        self.rows = RowGather(group, device, on_device=True)

    def work(self, link: Link) -> None:
        message = link.receive(timeout=self.patience)
        if isinstance(message, Gather):
            link.send(self.rows.gather(message.row))
