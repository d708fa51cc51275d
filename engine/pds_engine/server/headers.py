"""The router's word on a request: signed x-pds-* headers (engine.md §7, operator.md §8)."""

from collections.abc import Mapping
from dataclasses import dataclass

from pds_engine import signing
from pds_engine.errors import Forbidden, InvalidRequest
from pds_engine.messages import Role, Source


@dataclass(frozen=True, slots=True)
class Internal:
    """The router's word on one request; the defaults are those of a request without a router."""

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


def read(signed: bool, role: Role, headers: Mapping[str, str]) -> Internal:
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
        return Internal()
    given = headers.get("x-pds-role", "unified")
    if given != role:
        raise InvalidRequest(f"x-pds-role is {given}, this engine's role is {role}")
    return Internal(
        request_id=headers.get("x-pds-request-id"),
        attempt=headers.get("x-pds-attempt", ""),
        created=_number(headers, "x-pds-created"),
        seed=_number(headers, "x-pds-seed"),
        source=_source(headers) if role == "decode" else None,
        journal=headers.get("x-pds-journal") == "1",
        signed=True,
    )


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 20:
        raise InvalidRequest(f"{name} is not a whole number")
    return int(text)


def _source(headers: Mapping[str, str]) -> Source:
    address, group = headers.get("x-pds-peer"), headers.get("x-pds-peer-group")
    if not address or not group or not address.rpartition(":")[2].isdecimal():
        raise InvalidRequest("a decode request needs x-pds-peer (host:port) and x-pds-peer-group")
    return Source(address=address, group=group)
