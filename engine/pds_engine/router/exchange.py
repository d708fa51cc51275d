"""One whole exchange with a backend, for callers that want all of it or nothing."""

from collections.abc import Mapping

from pds_engine.router.upstream import BackendLost, Headers, Upstream
from pds_engine.wakeup import Wakeup

WHOLE_BYTES = 256 << 10
"""A longer answer counts as none: engines report a few thousand bytes of themselves."""


async def whole(
    upstream: Upstream, method: str, path: str, headers: Headers = (), body: bytes = b""
) -> tuple[int, Mapping[bytes, bytes], bytes]:
    """One exchange from end to end: status, headers (lower-case names) and body.

    Raises:
        BackendLost: it did not come to its end, or to more than WHOLE_BYTES.
    """
    wakeup = Wakeup()
    reply = upstream.request(method, path, headers, body, poke=wakeup.set)
    parts, size = [], 0
    try:
        while not reply.over:
            await wakeup.wait()
            parts.append(reply.take())
            size += len(parts[-1])
            if size > WHOLE_BYTES:
                raise BackendLost(f"{upstream.name}: answered more than {WHOLE_BYTES} bytes")
    finally:
        reply.close()
    if reply.error is not None:
        raise reply.error
    return reply.status, reply.headers, b"".join([*parts, reply.take()])
