"""The edge to the other dp ranks' schedulers: wake-ups, and the port that gathers rows.

The schedulers of a group stand in a star around dp rank 0's, which passes each Wake on: so many
connections, not their square.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from pds_engine.errors import RankLost
from pds_engine.keys import Keys
from pds_engine.messages import (
    AbortAck,
    AnyMessage,
    Gather,
    Hello,
    Message,
    Queued,
    Refused,
    Relay,
    TransferDone,
)
from pds_engine.scheduler.dp.port import GatherPort
from pds_engine.scheduler.party import SYNC, Party
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
TO_DECODE = (Queued, Refused, TransferDone, AbortAck)


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
        self._port = place.port
        self._link: Link | None = None
        if self._port is not None:
            poller.register(self._port.descriptor, zmq.POLLIN)
        if place.dp_rank:
            self._link = Link(context, place.first, keys)
            self._link.send(hello)
            poller.register(self._link.socket, zmq.POLLIN)
            poller.register(self._link.monitor, zmq.POLLIN)

    def receive(self) -> Iterator[AnyMessage]:
        """What has come: rows that were gathered, and wake-ups.

        Raises:
            RankLost: another dp rank is gone.
        """
        if self._port is not None and (found := self._port.take()) is not None:
            yield found
        if self._link is not None:
            while (message := self._link.receive()) is not None:
                yield message
            if self._link.lost:
                raise RankLost("the scheduler of dp rank 0 has ended: its connection is gone")

    def takes(self, party: Party, messages: Sequence[Message]) -> bool:
        """Send what goes this way: rows to the port, and to dp rank 0 what it tells the others or a
        decode scheduler. False: it goes to connections of our own."""
        if party == SYNC and self._port is not None:
            for message in messages:
                if isinstance(message, Gather):
                    self._port.gather(message.row)
            return True
        if self._link is None or party.kind not in ("replicas", "decode"):
            return False
        for message in messages:
            if party.kind == "decode" and isinstance(message, TO_DECODE):
                self._link.send(Relay(peer=party.name, message=message))
            else:
                self._link.send(message)
        return True

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._port is not None:
            self._port.close()
