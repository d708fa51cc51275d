"""The router's own answers: OpenAI's error object, whole or as a stream's last event."""

import json
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from pds_engine.errors import PdsError, error_headers, error_object

Send = Callable[[MutableMapping[str, Any]], Coroutine[Any, Any, None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


def error_body(error: PdsError) -> bytes:
    """OpenAI's error object as JSON."""
    return json.dumps(error_object(error)).encode()


def error_event(body: bytes, note: str = "") -> bytes:
    """An error object as one server-sent event. A body that is none becomes the message of one.

    `note` is added to its message.
    """
    try:
        error = json.loads(body)
        message = error["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:500].decode(errors="replace")
        error = {"error": {"type": "server_error", "param": None, "code": None}}
    error["error"]["message"] = f"{message} ({note})" if note else message
    return b"data: " + json.dumps(error).encode() + b"\n\n"


async def answer(send: Send, status: int, body: bytes, headers: Headers = (JSON,)) -> None:
    """A whole response at once."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: PdsError, headers: Headers = ()) -> None:
    """An error as a whole response."""
    own = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await answer(send, error.status, error_body(error), [JSON, *own, *headers])
