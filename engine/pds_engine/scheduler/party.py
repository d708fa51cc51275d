"""Who the scheduler talks to, and the messages that it sends."""

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from pds_engine.errors import PdsError
from pds_engine.messages import Failed, Message

Kind = Literal["workers", "watch", "server", "decode", "prefill", "replicas", "sync", "servers"]


class Party(Struct, frozen=True):
    """One end of a connection, by the part it plays for this scheduler.

    workers: all ranks together (name ""). watch: a rank's watchdog, by connection.
    server: an API server of this group, by connection.
    decode: a scheduler that offers pages to us, by connection. prefill: one that we offer pages to,
    by its host:port.
    replicas: the schedulers of all other dp ranks, or the one that is named by its number. sync:
    whoever gathers rows for this one. servers: all API servers.
    """

    kind: Kind
    name: str = ""


WORKERS = Party("workers")
REPLICAS = Party("replicas")
SYNC = Party("sync")
SERVERS = Party("servers")


class Out(Struct, frozen=True):
    """A message to send."""

    to: Party
    message: Message


Handlers = dict[type, Callable[[Party, Any, float], None]]
"""What is done with a message of each type: its sender, itself, and now."""


class Outbox(list[Out]):
    """Messages in the order in which they are to be sent."""

    def put(self, to: Party, message: Message) -> None:
        self.append(Out(to, message))

    def drain(self) -> list[Out]:
        """All messages put since the last drain."""
        out = list(self)
        self.clear()
        return out


def failure(request_id: str, error: PdsError) -> Failed:
    """The message that reports `error` to the API server."""
    return Failed(
        request_id=request_id,
        code=error.code,
        message=str(error),
        status=error.status,
        retry_after=error.retry_after,
    )
