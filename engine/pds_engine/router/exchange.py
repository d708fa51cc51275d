"""One whole exchange with a backend, for those who want all of it or nothing."""

from collections.abc import Mapping

from pds_engine.router.signal import Signal
from pds_engine.router.upstream import BackendLost, Headers, Upstream

WHOLE_BYTES = 256 << 10
"""Above that an answer is none: engines tell a few thousand bytes of themselves."""


async def whole(
    upstream: Upstream, method: str, path: str, headers: Headers = (), body: bytes = b""
) -> tuple[int, Mapping[bytes, bytes], bytes]:
    """One exchange from end to end: status, headers (lower-case names) and body.

    Raises:
        BackendLost: it did not come to its end, or to more than WHOLE_BYTES.
    """
    signal = Signal()
    reply = upstream.request(method, path, headers, body, poke=signal.set)
    parts, size = [], 0
    try:
        while not reply.over:
            await signal.wait()
            parts.append(reply.take())
            size += len(parts[-1])
            if size > WHOLE_BYTES:
                raise BackendLost(f"{upstream.name}: answered more than {WHOLE_BYTES} bytes")
    finally:
        reply.close()
    if reply.error is not None:
        raise reply.error
    return reply.status, reply.headers, b"".join([*parts, reply.take()])
