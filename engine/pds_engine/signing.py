"""Signatures of internal headers and calls: HMAC-SHA256 by a control key (router.md).

The text that is signed: method, path and expiry, a line each, then every other x-pds-* header as
`name:value`, sorted by name. Without it a client could name a peer (SSRF, remote KV writes).
"""

import hashlib
import hmac
from collections.abc import Mapping

from pds_engine.errors import Forbidden, WrongClock

PREFIX = "x-pds-"
EXPIRY = "x-pds-expiry"
SIGNATURE = "x-pds-signature"
NOW = "x-pds-now"
NOW_SIGNATURE = "x-pds-now-signature"
LONGEST_SECONDS = 300
"""A signature that holds for longer was made by a clock that is ahead. Ours hold for 60 s."""


def signed(
    key: bytes, method: str, path: str, headers: Mapping[str, str], expires: int
) -> dict[str, str]:
    """`headers` (lower-case x-pds-* names) with expiry (Unix seconds) and signature added."""
    dated = {**headers, EXPIRY: str(expires)}
    return {**dated, SIGNATURE: _digest(key, method, path, dated)}


def verify(key: bytes, method: str, path: str, headers: Mapping[str, str], now: float) -> None:
    """Check the x-pds-* headers among `headers` (lower-case names).

    Raises:
        Forbidden: there is no signature, or it is not of this key and text.
        WrongClock: it is, and by our clock it has expired or holds for too long. The answer gives
            our time to the signer, in headers that nobody else can make.
    """
    ours = {name: value for name, value in headers.items() if name.startswith(PREFIX)}
    given = ours.pop(SIGNATURE, "")
    expiry = ours.get(EXPIRY, "")
    expected = _digest(key, method, path, ours)
    if not given or not hmac.compare_digest(given.encode(), expected.encode()):
        raise Forbidden("x-pds-* headers are signed by the router; these are not")
    if not expiry.isascii() or not expiry.isdecimal() or len(expiry) > 20:
        raise Forbidden("x-pds-expiry is no time in seconds")
    if not now <= int(expiry) <= now + LONGEST_SECONDS:
        raise WrongClock(
            "the signature of the x-pds-* headers has expired, or holds for too long",
            hint="the clocks of router, operator and engine differ: set them by NTP",
            headers=_clock_headers(key, given, int(now)),
        )


def clock_of(key: bytes, signature: str, headers: Mapping[str, str]) -> float | None:
    """The time that an engine gives in its answer to a request of that `signature`.

    headers: of the answer, with lower-case names. None: it gives none, or it does not hold `key`.
    """
    text, proof = headers.get(NOW, ""), headers.get(NOW_SIGNATURE, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        return None
    expected = _clock_headers(key, signature, int(text))[NOW_SIGNATURE]
    return float(text) if hmac.compare_digest(proof.encode(), expected.encode()) else None


def _clock_headers(key: bytes, signature: str, now: int) -> dict[str, str]:
    """Our time, for the sender of `signature`: it answers no other request."""
    text = f"now\n{now}\n{signature}"
    proof = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return {NOW: str(now), NOW_SIGNATURE: proof}


def key_id(key: bytes) -> str:
    """Ten characters by which a control key is known in the open: labels, /pds/state, names.

    The operator works it out in the same way (`pds_operator.run.keys`). The hash has a domain of
    its own, so that it reveals nothing of other uses of the key.
    """
    return hashlib.sha256(b"pdserving control key\0" + key).hexdigest()[:10]


def _digest(key: bytes, method: str, path: str, headers: Mapping[str, str]) -> str:
    lines = [method, path, headers.get(EXPIRY, "")]
    lines += [f"{name}:{value}" for name, value in sorted(headers.items()) if name != EXPIRY]
    return hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
