"""Reads a request's body under a bound of size and of time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from pds_engine.errors import BodyTimeout, BodyTooLarge
from pds_engine.room import Share
from pds_engine.server.inbox import ClientGone

SECONDS = 30.0
_PATIENCE = 8
"""So many times the bound is read and thrown away, so that a client hears 413 and not a reset."""


async def read(request: Request, limit: int, share: Share, seconds: float = SECONDS) -> bytes:
    """The whole body, which takes its place in `share` as it comes.

    Raises:
        Overloaded: other bodies leave no room for it.
        BodyTooLarge: it is above `limit` bytes.
        BodyTimeout: it did not come within `seconds`.
        ClientGone: the client left meanwhile.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size <= limit:
                    share.take(len(piece))
                    pieces.append(piece)
                elif size > limit * _PATIENCE:
                    break
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not come within {seconds:g} s") from error
    except ClientDisconnect as error:
        raise ClientGone("the client left before its body had come") from error
    if size > limit:
        raise BodyTooLarge(f"the body is above {limit} bytes")
    return b"".join(pieces)
