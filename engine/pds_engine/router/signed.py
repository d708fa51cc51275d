"""Requests that the router signs, each by its reader's clock.

An engine that refuses a signature for nothing but its time answers its own time, in headers that
only the control key can make (`signing`). From then on requests to it are signed by that clock,
until ours is good for it again.
"""

from collections.abc import Mapping
from time import time

from pds_engine.router.backends import Backend
from pds_engine.router.exchange import whole
from pds_engine.router.upstream import Headers
from pds_engine.signing import SIGNATURE, clock_of, signed

SECONDS = 60
"""How long a signature holds: a request may travel so long, and clocks may differ so much."""
LOOK_SECONDS = 30
"""The same for what is asked time and again: it fails before a request does."""
SAME = 5.0
"""Seconds: two clocks that differ by less are the same here."""


class Signature:
    """The signed headers of one request, and what its answer says about clocks."""

    def __init__(
        self,
        key: bytes,
        request: tuple[str, str],
        ours: Mapping[str, str],
        ahead: float,
        seconds: int = SECONDS,
    ) -> None:
        """
        Args:
            request: method and path.
            ours: lower-case x-pds-* names.
            ahead: seconds that the reader's clock is ahead of ours.
        """
        self._key, self._ahead, self._at = key, ahead, time()
        expires = int(self._at + ahead) + seconds
        self._signed = signed(key, *request, ours, expires)
        self.headers = [(name.encode(), value.encode()) for name, value in self._signed.items()]

    def corrected(self, status: int, answer: Mapping[bytes, bytes]) -> float | None:
        """How far the reader's clock is ahead, where it refused for that; else None.

        Also None where that was known, and it refuses a request by its own clock.
        """
        if status != 403:
            return None
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in answer.items()}
        theirs = clock_of(self._key, self._signed[SIGNATURE], headers)
        if theirs is None or abs(theirs - self._at - self._ahead) < SAME:
            return None
        return theirs - self._at


async def ask(
    backend: Backend,
    key: bytes | None,
    method: str,
    path: str,
    body: bytes = b"",
) -> tuple[int, bytes]:
    """One whole exchange, signed by our clock, and once more by the engine's where it asks for it.

    Raises:
        BackendLost: it did not come to its end.
    """
    plain: Headers = [(b"content-type", b"application/json")] if body else []
    if key is None:
        status, _, answer = await whole(backend.upstream, method, path, plain, body)
        return status, answer
    signature = Signature(key, (method, path), {}, 0.0, LOOK_SECONDS)
    sent = [*plain, *signature.headers]
    status, headers, answer = await whole(backend.upstream, method, path, sent, body)
    ahead = signature.corrected(status, headers)
    if ahead is None:
        if status != 403:
            backend.clock = 0.0
        return status, answer
    backend.clock = ahead
    again = Signature(key, (method, path), {}, ahead, LOOK_SECONDS)
    sent = [*plain, *again.headers]
    status, _, answer = await whole(backend.upstream, method, path, sent, body)
    return status, answer
