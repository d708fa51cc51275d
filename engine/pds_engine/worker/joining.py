"""How a worker comes into its group: Hello, Welcome, and Assemble once all ranks are there."""

from typing import TypeVar

import zmq

from pds_engine.config import EngineConfig
from pds_engine.errors import GroupError, ProtocolError
from pds_engine.messages import Assemble, Hello, Message, Welcome
from pds_engine.wire import Link

M = TypeVar("M", bound=Message)


def join(
    config: EngineConfig, link: Link, rank: int, incarnation: str, manifest: str = ""
) -> tuple[Assemble, str]:
    """Say Hello, and wait until the scheduler has heard it from every rank.

    `incarnation` is empty in a pod that is not the leader's: it is what the scheduler says, and is
    returned beside Assemble. `manifest` is the digest of this rank's kernels, which are in memory.

    The scheduler may be late by join_timeout; how long it waits for others is for it to say, since
    it knows who is missing.

    Raises:
        ProtocolError: the scheduler did not answer in join_timeout, or is another's.
        GroupError: the scheduler has given the group up.
    """
    group = config.pod.group
    hello = Hello(peer="worker", group=group, incarnation=incarnation, rank=rank, manifest=manifest)
    link.send(hello)
    welcome = _expect(link, Welcome, rank, config.join_timeout)
    if incarnation not in ("", welcome.incarnation):
        raise ProtocolError(f"the scheduler is of incarnation {welcome.incarnation}")
    return _expect(link, Assemble, rank, None), welcome.incarnation


def _expect(link: Link, kind: type[M], rank: int, seconds: float | None) -> M:
    poller = zmq.Poller()
    poller.register(link.socket, zmq.POLLIN)
    poller.register(link.monitor, zmq.POLLIN)
    while (message := link.receive()) is None:
        if link.lost:
            raise GroupError("the scheduler has closed its connection")
        if not poller.poll(None if seconds is None else round(1000 * seconds)):
            raise ProtocolError(f"the scheduler did not answer rank {rank} in {seconds:g} s")
    if not isinstance(message, kind):
        raise ProtocolError(f"{type(message).__name__} came where {kind.__name__} was expected")
    return message
