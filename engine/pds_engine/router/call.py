"""One client's request as the router sees it: a few fields of a body it forwards whole."""

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pds_engine.asked import Asked, asked
from pds_engine.errors import InvalidRequest
from pds_engine.router.config import Policy

BYTES_PER_TOKEN = 4
"""Of English text in common tokenizers; the router has none, and only compares loads."""
DEFAULT_OUTPUT = 256
"""Tokens assumed where a body names no bound."""
AFFINITY_BYTES = 2048
"""How much of the prompt's beginning says which requests share a prefix."""
FORWARDED = frozenset(
    {b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"x-request-id"}
)
"""Headers that travel on; a client's x-pds-* ones and its API key never do."""
STREAMED = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl"}
"""The routes that take a pair, and what their response ids begin with."""


_PLAIN_BYTES = 64
"""A field's value of more bytes is none that the engine takes, so it is not even decoded here."""
LONGEST = 1 << 20
"""Tokens of a context, where no engine has told its own yet."""


class _Peek(msgspec.Struct):
    """Fields as they stand in the body: whatever is there, reading them costs next to nothing."""

    stream: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()
    seed: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    pds_resume: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()

    def asked(self, path: str) -> Asked:
        chat = STREAMED[path] == "chatcmpl"
        return asked(
            stream=_plain(self.stream),
            n=_plain(self.n),
            max_tokens=_plain(self.max_tokens),
            max_completion_tokens=_plain(self.max_completion_tokens) if chat else None,
            seed=_plain(self.seed),
        )


_decoder = msgspec.json.Decoder(_Peek)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """`prompt_tokens` and `output_tokens` are estimates by which loads are compared."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """The client's, as far as they travel on."""
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
    *,
    now: float,
    policy: Policy = "leastTokens",
    longest: int | None = None,
) -> Call:
    """A POST to one of STREAMED. What is not checked here, the engine checks.

    longest: the tokens that any group's context holds; no request can cost more a choice.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    try:
        peek = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error
    if peek.pds_resume and bytes(peek.pds_resume) != b"null":
        raise InvalidRequest("pds_resume is for the router alone", param="pds_resume")
    kept = tuple((name, value) for name, value in headers if name in FORWARDED)
    wants = peek.asked(path)
    bound = DEFAULT_OUTPUT if wants.max_tokens is None else wants.max_tokens
    return Call(
        method="POST",
        path=path,
        body=body,
        headers=kept,
        request_id=f"{STREAMED[path]}-{secrets.token_hex(16)}",
        created=int(now),
        seed=secrets.randbits(31) if wants.seed is None else wants.seed,
        stream=wants.stream,
        prompt_tokens=math.ceil(len(peek.prompt or peek.messages) / BYTES_PER_TOKEN),
        output_tokens=min(bound, longest or LONGEST) * wants.choices,
        affinity=_affinity(policy, peek, dict(headers)),
    )


def resumed(call: Call, output_ids: Sequence[int]) -> Call:
    """The same request, to go on behind tokens that its client has. Its body stays as it came."""
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
    kept = tuple((name, value) for name, value in headers if name in FORWARDED)
    name = f"req-{secrets.token_hex(16)}"
    return Call(
        method=method, path=path, body=body, headers=kept, request_id=name, created=int(now)
    )


def _affinity(policy: Policy, peek: _Peek, headers: Mapping[bytes, bytes]) -> bytes:
    if policy == "session":
        session = headers.get(b"x-session-id") or _text(peek.user)
        return hashlib.blake2b(session, digest_size=16).digest() if session else b""
    if policy == "prefixAware":
        start = bytes(peek.prompt or peek.messages)[:AFFINITY_BYTES]
        return hashlib.blake2b(start, digest_size=16).digest() if start else b""
    return b""


def _plain(raw: msgspec.Raw) -> object:
    """A number or a constant; None for anything else, which the engine refuses by name."""
    if not raw or len(raw) > _PLAIN_BYTES:
        return None
    try:
        return msgspec.json.decode(raw, type=int | float | bool | None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _text(raw: msgspec.Raw) -> bytes:
    try:
        return msgspec.json.decode(raw, type=str).encode() if raw else b""
    except (msgspec.DecodeError, UnicodeError):
        return b""
