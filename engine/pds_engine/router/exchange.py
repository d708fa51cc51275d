"""One whole exchange with a backend, for those who want all of it or nothing."""

from pds_engine.router.signal import Signal
from pds_engine.router.upstream import Headers, Upstream


async def whole(
    upstream: Upstream, method: str, path: str, headers: Headers = (), body: bytes = b""
) -> tuple[int, bytes]:
    """One exchange from end to end: status and body.

    Raises:
        BackendLost: it did not come to its end.
    """
    signal = Signal()
    reply = upstream.request(method, path, headers, body, poke=signal.set)
    parts = []
    try:
        while not reply.over:
            await signal.wait()
            parts.append(reply.take())
    finally:
        reply.close()
    if reply.error is not None:
        raise reply.error
    return reply.status, b"".join([*parts, reply.take()])
