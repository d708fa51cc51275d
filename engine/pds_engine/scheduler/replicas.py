"""The edge to the other dp ranks' schedulers: wake-ups, and the port that gathers rows.

The schedulers of a group stand in a star around dp rank 0's, which passes each Wake on: so many
connections, not their square.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from pds_engine.errors import RankLost
from pds_engine.keys import Keys
from pds_engine.messages import AnyMessage, Gather, Hello, Message
from pds_engine.scheduler.dp.port import GatherPort
from pds_engine.wire import Link


@dataclass(frozen=True, slots=True)
class DpPlace:
    """Which dp rank this is, and how it reaches the others."""

    dp_rank: int
    first: str
    """ZMQ address of dp rank 0's scheduler."""
    port: GatherPort | None = None
    """None: a worker gathers for this rank (dp.sync_device: device)."""


ALONE = DpPlace(0, "")


class ReplicaLinks:
    """What dp rank `place.dp_rank` has of the others; of dp rank 0, only what gathers."""

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        poller: zmq.Poller,
        keys: Keys,
        hello: Hello,
        place: DpPlace,
    ) -> None:
        self.port = place.port
        self.link: Link | None = None
        if self.port is not None:
            poller.register(self.port.descriptor, zmq.POLLIN)
        if place.dp_rank:
            self.link = Link(context, place.first, keys)
            self.link.send(hello)
            poller.register(self.link.socket, zmq.POLLIN)
            poller.register(self.link.monitor, zmq.POLLIN)

    def receive(self) -> Iterator[AnyMessage]:
        """What has come: rows that were gathered, and wake-ups.

        Raises:
            RankLost: another dp rank is gone.
        """
        if self.port is not None and (found := self.port.take()) is not None:
            yield found
        if self.link is not None:
            while (message := self.link.receive()) is not None:
                yield message
            if self.link.lost:
                raise RankLost("the scheduler of dp rank 0 has ended: its connection is gone")

    def gather(self, message: Gather) -> None:
        """Give the row to the port."""
        if self.port is not None:
            self.port.gather(message.row)

    def wake(self, message: Message) -> None:
        """Tell dp rank 0, which tells the others."""
        if self.link is not None:
            self.link.send(message)

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
        if self.port is not None:
            self.port.close()
