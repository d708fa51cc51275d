"""Reads a request's body under a bound of size and of time: for the API server and the router."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from pds_engine.errors import BodyTimeout, BodyTooLarge, ClientGone
from pds_engine.room import Share

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's."""


class Bounds(NamedTuple):
    """What a body may take, and the errors beyond that."""

    size: int
    """Bytes."""
    seconds: float
    too_large: str
    too_late: str
    patience: int = 1
    """So many times `size` at the most is read and dropped, so that a client gets 413 and not a
    reset."""


async def read(receive: Receive, bounds: Bounds, share: Share) -> bytes:
    """The whole body; `share` counts its bytes as they come.

    Raises:
        Overloaded: other bodies leave no room for it.
        BodyTooLarge, BodyTimeout: it is beyond its bounds.
        ClientGone: the client left meanwhile.
    """
    pieces: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(bounds.seconds):
            while more and size <= bounds.size * bounds.patience:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client left before its body had come")
                piece = message.get("body", b"")
                size += len(piece)
                if piece and size <= bounds.size:
                    share.take(len(piece))
                    pieces.append(piece)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise BodyTimeout(bounds.too_late) from error
    if size > bounds.size:
        raise BodyTooLarge(bounds.too_large)
    return b"".join(pieces)
