"""One client's request as the router sees it: a few fields of a body that it forwards whole."""

import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pds_engine.router.config import Policy
from pds_engine.router.peek import Kind, Peeked, digest

DEFAULT_OUTPUT = 256
"""Output tokens assumed where a body names no bound."""
FORWARDED = frozenset(
    {b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"x-request-id"}
)
"""Headers that travel on; a client's x-pds-* ones and its API key never do."""
STREAMED: Mapping[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
}
"""The routes that take a pair."""
_ID = {"chat": "chatcmpl", "completion": "cmpl"}
"""What their response ids begin with."""
LONGEST = 1 << 20
"""Tokens of a context, where no engine has reported its own yet."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """`prompt_tokens` and `output_tokens` are estimates by which loads are compared."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """Those of the client's that are FORWARDED."""
    request_id: str
    created: int
    seed: int = 0
    stream: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    affinity: bytes = b""


def read_call(
    path: str,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    peeked: Peeked,
    *,
    now: float,
    policy: Policy = "leastTokens",
    longest: int | None = None,
) -> Call:
    """A POST to one of STREAMED.

    Args:
        peeked: what the body says of itself.
        longest: the tokens that any group's context holds; no request can cost more a choice.
    """
    wants = peeked.fields
    bound = DEFAULT_OUTPUT if wants.max_tokens is None else wants.max_tokens
    session = dict(headers).get(b"x-session-id", b"") if policy == "session" else b""
    return Call(
        method="POST",
        path=path,
        body=body,
        headers=_kept(headers),
        request_id=f"{_ID[STREAMED[path]]}-{secrets.token_hex(16)}",
        created=int(now),
        seed=secrets.randbits(31) if wants.seed is None else wants.seed,
        stream=wants.stream,
        prompt_tokens=peeked.prompt_tokens,
        output_tokens=min(bound, longest or LONGEST) * wants.choices,
        affinity=digest(session) or peeked.affinity,
    )


def resumed(call: Call, output_ids: Sequence[int]) -> Call:
    """The same request, to go on after tokens that its client has. Its body stays as it came."""
    if not output_ids:
        return call
    given = b'"pds_resume":{"output_ids":[%b]}}' % ",".join(map(str, output_ids)).encode()
    opened = call.body.rstrip()[:-1].rstrip()
    count = len(output_ids)
    return msgspec.structs.replace(
        call,
        body=opened + (b"" if opened.endswith(b"{") else b",") + given,
        prompt_tokens=call.prompt_tokens + count,
        output_tokens=max(call.output_tokens - count, 1),
    )


def plain_call(
    method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, now: float
) -> Call:
    """A request that any one backend answers (/tokenize and the like)."""
    return Call(
        method=method,
        path=path,
        body=body,
        headers=_kept(headers),
        request_id=f"req-{secrets.token_hex(16)}",
        created=int(now),
    )


def _kept(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, value) for name, value in headers if name in FORWARDED)
