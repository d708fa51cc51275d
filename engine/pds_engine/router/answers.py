"""What the router itself answers: OpenAI's error object, or the same as a stream's last event."""

import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from pds_engine.errors import GroupError, PdsError, RequestError

Send = Callable[[MutableMapping[str, Any]], Coroutine[Any, Any, None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


def status_of(error: PdsError) -> int:
    """HTTP's code for an error: the one place that maps them."""
    if isinstance(error, RequestError):
        return error.status
    return 503 if isinstance(error, GroupError) else 500


def error_body(error: PdsError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, as the openai SDK reads it."""
    kind = error.kind if isinstance(error, RequestError) else "server_error"
    param = error.param if isinstance(error, RequestError) else None
    told = {"message": str(error), "type": kind, "param": param, "code": error.code}
    return json.dumps({"error": told}).encode()


def error_event(body: bytes, note: str = "") -> bytes:
    """An error object as one server-sent event; anything else becomes its message.

    `note` is added to its message.
    """
    try:
        told = json.loads(body)
        message = told["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:500].decode(errors="replace")
        told = {"error": {"type": "server_error", "param": None, "code": None}}
    told["error"]["message"] = f"{message} ({note})" if note else message
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def error_headers(error: PdsError) -> list[tuple[bytes, bytes]]:
    """Retry-After where the error carries one."""
    after = error.retry_after if isinstance(error, RequestError) else None
    return [] if after is None else [(b"retry-after", b"%d" % after)]


async def answer(send: Send, status: int, body: bytes, headers: Headers = (JSON,)) -> None:
    """A whole response at once."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: PdsError, headers: Headers = ()) -> None:
    """An error as a whole response."""
    told = [JSON, *error_headers(error), *headers]
    await answer(send, status_of(error), error_body(error), told)
