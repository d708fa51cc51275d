"""The API server's errors as HTTP answers; `pds_engine.errors` says what is in them."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pds_engine.errors import (
    GroupError,
    NoRoute,
    PdsError,
    RequestError,
    Unavailable,
    Unexpected,
    error_headers,
    error_object,
)
from pds_engine.messages import Failed


class RequestFailed(RequestError):
    """The scheduler gave a request up: its own error, as the message carries it."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message, retry_after=failed.retry_after)
        self.code = failed.code
        self.status = failed.status


def http_error(error: Exception) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers for any error."""
    ours = _ours(error)
    headers = error_headers(ours)
    if ours.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not wanted
    return ours.status, msgspec.json.encode(error_object(ours)), headers


def response(error: Exception) -> Response:
    """`http_error`, as a response."""
    status, content, headers = http_error(error)
    return Response(content, status, headers, media_type="application/json")


def probe_answer(problem: str | None) -> Response:
    """The answer to a probe: 200, or 503 with what is wrong."""
    return Response(b"", 200) if problem is None else response(Unavailable(problem))


async def handler(request: Any, error: Exception) -> Response:
    """For Starlette's table of exception handlers."""
    return response(error)


def _ours(error: Exception) -> PdsError:
    """`error` as a client may hear of it; one not meant for clients says nothing of its inside."""
    if isinstance(error, RequestError | GroupError):
        return error
    if isinstance(error, HTTPException):
        route = NoRoute(str(error.detail), error.status_code, headers=error.headers or {})
        route.code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return route
    return Unexpected("an internal error; the server's log has it")
