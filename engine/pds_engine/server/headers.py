"""What the router says about a request: signed x-pds-* headers (router.md)."""

from collections.abc import Mapping
from dataclasses import dataclass

from pds_engine import signing
from pds_engine.errors import Forbidden, InvalidRequest
from pds_engine.messages import Role, Source
from pds_engine.messages.bounds import TIME, Bound
from pds_engine.request_fields import seed_bits

_ANY = Bound(0, 10**20)
"""Bounds a seed, of which only the lowest bits count."""


@dataclass(frozen=True, slots=True)
class InternalHeaders:
    """What the router says about a request; by default, what is true without a router."""

    request_id: str | None = None
    attempt: str = ""
    """Which of the router's attempts at this request it is."""
    created: int | None = None
    seed: int | None = None
    source: Source | None = None
    journal: bool = False
    signed: bool = False


def check(
    key: bytes | None, method: str, path: str, headers: Mapping[str, str], now: float
) -> bool:
    """Whether there are x-pds-* headers, which must then be signed by `key`.

    Raises:
        Forbidden: they are not, or there is no key to check them with.
    """
    if not any(name.startswith(signing.PREFIX) for name in headers):
        return False
    if key is None:
        raise Forbidden(
            "x-pds-* headers are for the router alone, and this engine shares no key with one",
            hint="leave them out, or set http.keys_dir",
        )
    signing.verify(key, method, path, headers, now)
    return True


def read(signed: bool, role: Role, headers: Mapping[str, str]) -> InternalHeaders:
    """The headers of a request to an engine of `role`; `signed` is what `check` said.

    Raises:
        Forbidden: a client came to a prefill or decode engine by itself.
        InvalidRequest: a header is malformed, or for another role.
    """
    if not signed:
        if role != "unified":
            raise Forbidden(
                f"this is a {role} engine: it answers the router alone",
                hint="send the request to the PDServing's router",
            )
        return InternalHeaders()
    given = headers.get("x-pds-role", "unified")
    if given != role:
        raise InvalidRequest(
            f"x-pds-role is {given[:32]}, this engine's role is {role}", param="x-pds-role"
        )
    return InternalHeaders(
        request_id=headers.get("x-pds-request-id"),
        attempt=headers.get("x-pds-attempt", ""),
        created=_number(headers, "x-pds-created", TIME),
        seed=seed_bits(_number(headers, "x-pds-seed", _ANY)),
        source=_source(headers) if role == "decode" else None,
        journal=headers.get("x-pds-journal") == "1",
        signed=True,
    )


def _number(headers: Mapping[str, str], name: str, bound: Bound) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    whole = text.isascii() and text.isdecimal() and len(text) <= 20
    if not whole or not bound.holds(int(text)):
        raise InvalidRequest(
            f"{name} is no whole number from {bound.least} to {bound.most}", param=name
        )
    return int(text)


def _source(headers: Mapping[str, str]) -> Source:
    address, group = headers.get("x-pds-peer"), headers.get("x-pds-peer-group")
    port = address.rpartition(":")[2] if address and group else ""
    numbered = port.isascii() and port.isdecimal() and len(port) <= 5
    if not address or not group or not numbered or not 0 < int(port) < 2**16:
        raise InvalidRequest(
            "a decode request needs x-pds-peer (host:port) and x-pds-peer-group", param="x-pds-peer"
        )
    return Source(address=address, group=group)
