"""One mapping from what went wrong to what the client is told, in OpenAI's form."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pds_engine.errors import GroupError, PdsError, RequestError, Unavailable, WrongClock
from pds_engine.messages import Failed

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestFailed(PdsError):
    """The scheduler gave a request up; `failed` says why."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def body(message: str, status: int, code: str, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}
    )


def told(error: Exception) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers for any error; one that is not ours says nothing of its inside."""
    headers: dict[str, str] = {}
    wait: int | None = None
    if isinstance(error, RequestError):
        status, wait = error.status, error.retry_after
        content = body(str(error), status, error.code, error.param)
        if isinstance(error, WrongClock):
            headers.update(error.headers)
    elif isinstance(error, RequestFailed):
        failed = error.failed
        status, wait = failed.status, failed.retry_after
        content = body(failed.message, status, failed.code)
    elif isinstance(error, GroupError):
        status, wait = 503, 1
        content = body(str(error), status, error.code)
    elif isinstance(error, HTTPException):
        status = error.status_code
        headers.update(error.headers or {})
        phrase = HTTPStatus(status).phrase
        content = body(str(error.detail), status, phrase.lower().replace(" ", "_"))
    else:
        status = 500
        content = body("an internal error; the server's log has it", status, PdsError.code)
    if wait is not None:
        headers["retry-after"] = str(wait)
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not wanted
    return status, content, headers


def response(error: Exception) -> Response:
    """`told`, as a response."""
    status, content, headers = told(error)
    return Response(content, status, headers, media_type="application/json")


def verdict(problem: str | None) -> Response:
    """The answer to a probe: 200, or 503 with what is wrong."""
    return Response(b"", 200) if problem is None else response(Unavailable(problem))


async def handler(request: Any, error: Exception) -> Response:
    """For Starlette's table of exception handlers."""
    return response(error)
