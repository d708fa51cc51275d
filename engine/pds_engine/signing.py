"""Signatures of internal headers and calls: HMAC-SHA256 by a control key (operator.md §8).

The text that is signed: method, path and expiry, a line each, then every other x-pds-* header as
`name:value`, sorted by name. Without it a client could name a peer (SSRF, remote KV writes).
"""

import hashlib
import hmac
from collections.abc import Mapping

from pds_engine.errors import Forbidden

PREFIX = "x-pds-"
EXPIRY = "x-pds-expiry"
SIGNATURE = "x-pds-signature"


def signed(
    key: bytes, method: str, path: str, headers: Mapping[str, str], expires: int
) -> dict[str, str]:
    """`headers` (lower-case x-pds-* names) with expiry (Unix seconds) and signature added."""
    dated = {**headers, EXPIRY: str(expires)}
    return {**dated, SIGNATURE: _digest(key, method, path, dated)}


def verify(key: bytes, method: str, path: str, headers: Mapping[str, str], now: float) -> None:
    """Check the x-pds-* headers among `headers` (lower-case names).

    Raises:
        Forbidden: there is no signature, it is not of this key and text, or it has expired.
    """
    ours = {name: value for name, value in headers.items() if name.startswith(PREFIX)}
    given = ours.pop(SIGNATURE, "")
    expiry = ours.get(EXPIRY, "")
    if not given or not hmac.compare_digest(given, _digest(key, method, path, ours)):
        raise Forbidden("x-pds-* headers are signed by the router; these are not")
    if not expiry.isdecimal() or int(expiry) < now:
        raise Forbidden("the signature of the x-pds-* headers has expired")


def key_id(key: bytes) -> str:
    """Ten characters by which a control key is known in the open: labels, /pds/state, names.

    The operator works it out in the same way (`pds_operator.keys`). The hash has a domain of its
    own, so that it tells nothing of other uses of the key.
    """
    return hashlib.sha256(b"pdserving control key\0" + key).hexdigest()[:10]


def _digest(key: bytes, method: str, path: str, headers: Mapping[str, str]) -> str:
    lines = [method, path, headers.get(EXPIRY, "")]
    lines += [f"{name}:{value}" for name, value in sorted(headers.items()) if name != EXPIRY]
    return hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
