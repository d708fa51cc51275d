"""The few fields of a body that the router reads: those that choose a pair and bound a request."""

import hashlib
import math
from typing import Literal

import msgspec

from pds_engine.errors import InvalidRequest
from pds_engine.reading import LARGE, Reader
from pds_engine.request_fields import RequestFields, request_fields
from pds_engine.router.config import Policy

BYTES_PER_TOKEN = 4
"""About right for English text; the router has no tokenizer, and only compares loads."""
AFFINITY_BYTES = 2048
"""How much of the prompt's beginning says which requests share a prefix."""
_PLAIN_BYTES = 64
"""The engine takes no longer value of a plain field, so it is not even decoded here."""

Kind = Literal["completion", "chat"]


class Peeked(msgspec.Struct, frozen=True, kw_only=True):
    """What the router reads of a body."""

    fields: RequestFields
    prompt_tokens: int
    """An estimate, by which loads are compared."""
    affinity: bytes = b""
    """By the policy: a digest of the prompt's beginning, or of `user`; empty: none."""


class _Fields(msgspec.Struct):
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


_decoder = msgspec.json.Decoder(_Fields)


class Peeker:
    """Peeks into bodies of any size without keeping others waiting."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._reader = Reader("pds_engine.router.peek:answered")

    async def peek(self, body: bytes, kind: Kind) -> Peeked:
        """`peek` below.

        Raises:
            RequestError: as there; or a large body found no turn.
        """
        if len(body) <= LARGE:
            return peek(body, kind, self._policy)
        question = msgspec.msgpack.encode((kind, self._policy))
        return msgspec.msgpack.decode(await self._reader.read(question, body), type=Peeked)

    async def close(self) -> None:
        """End the process that reads large bodies."""
        await self._reader.close()


def answered(question: bytes, body: bytes) -> bytes:
    """`peek` in the form that `Reader` calls."""
    kind, policy = msgspec.msgpack.decode(question, type=tuple[Kind, Policy])
    return msgspec.msgpack.encode(peek(body, kind, policy))


def peek(body: bytes, kind: Kind, policy: Policy) -> Peeked:
    """The engine checks what is not checked here.

    Raises:
        InvalidRequest: the body is not a JSON object, or has a field that only the router may send.
    """
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error
    if fields.pds_resume and bytes(fields.pds_resume) != b"null":
        raise InvalidRequest("pds_resume is for the router alone", param="pds_resume")
    prompt = fields.prompt or fields.messages
    return Peeked(
        fields=request_fields(
            stream=_plain(fields.stream),
            n=_plain(fields.n),
            max_tokens=_plain(fields.max_tokens),
            max_completion_tokens=_plain(fields.max_completion_tokens) if kind == "chat" else None,
            seed=_plain(fields.seed),
        ),
        prompt_tokens=math.ceil(len(prompt) / BYTES_PER_TOKEN),
        affinity=_affinity(policy, fields.user, prompt),
    )


def digest(said: bytes) -> bytes:
    """Requests of one session share it; empty where no session is named."""
    return hashlib.blake2b(said, digest_size=16).digest() if said else b""


def _affinity(policy: Policy, user: msgspec.Raw, prompt: msgspec.Raw) -> bytes:
    if policy == "session":
        return digest(_text(user))
    return digest(bytes(prompt)[:AFFINITY_BYTES]) if policy == "prefixAware" else b""


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
