"""What a client gets of every error, byte for byte, from each process that may answer it.

The API server writes its JSON without spaces, and text as it is; the router as `json.dumps` does.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pds_engine import errors
from pds_engine.errors import PdsError
from pds_engine.messages import Failed
from pds_engine.router.answers import answer_error
from pds_engine.scheduler.party import failure
from pds_engine.server.errors import RequestFailed, response
from pds_engine.server.inbox import ClientSlow
from pds_engine.wire import decode, encode
from starlette.exceptions import HTTPException

INVALID, SERVER, TIMEOUT = "invalid_request_error", "server_error", "timeout_error"
AUTHENTICATION, PERMISSION = "authentication_error", "permission_error"
RATE = "rate_limit_error"
INTERNAL = "an internal error; the server's log has it"
CLOSE = ("connection", "close")


@dataclass(frozen=True)
class ErrorRow:
    """An error, and what the API server answers for it."""

    error: Exception
    status: int
    kind: str
    code: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "größer (so)"

    def __str__(self) -> str:
        return type(self.error).__name__

    @property
    def body(self) -> dict[str, Any]:
        content = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": content}


def of(kind: Callable[..., PdsError], **more: str | int) -> PdsError:
    return kind("größer", hint="so", **more)


def again(seconds: int) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(seconds)),)


REQUESTS = [
    ErrorRow(of(errors.RequestError, param="p"), 400, INVALID, "invalid_request", "p"),
    ErrorRow(of(errors.InvalidRequest, param="n"), 400, INVALID, "invalid_request", "n"),
    ErrorRow(of(errors.TooLong, param="prompt"), 400, INVALID, "context_length_exceeded", "prompt"),
    ErrorRow(of(errors.UnknownModel, param="model"), 404, INVALID, "model_not_found", "model"),
    ErrorRow(errors.NoRoute("größer", 405, hint="so"), 405, INVALID, "invalid_request"),
    ErrorRow(of(errors.Unauthorized), 401, AUTHENTICATION, "invalid_api_key"),
    ErrorRow(of(errors.Forbidden), 403, PERMISSION, "forbidden"),
    ErrorRow(of(errors.BodyTimeout), 408, INVALID, "body_timeout", headers=(CLOSE,)),
    ErrorRow(of(errors.BodyTooLarge), 413, INVALID, "body_too_large", headers=(CLOSE,)),
    ErrorRow(of(errors.DeadlinePassed), 504, TIMEOUT, "deadline_passed"),
    ErrorRow(of(errors.Unexpected), 500, SERVER, "internal_error"),
    ErrorRow(of(errors.Overloaded, retry_after=7), 429, RATE, "overloaded", headers=again(7)),
    ErrorRow(of(errors.NotFinite), 500, SERVER, "not_finite"),
    ErrorRow(of(errors.Unavailable), 503, SERVER, "unavailable"),
    ErrorRow(of(errors.Unavailable, retry_after=1), 503, SERVER, "unavailable", headers=again(1)),
    ErrorRow(of(errors.Drained), 503, SERVER, "drained"),
    ErrorRow(of(errors.Preempted), 503, SERVER, "preempted"),
    ErrorRow(of(errors.NotRead, retry_after=1), 503, SERVER, "body_not_read", headers=again(1)),
    ErrorRow(of(errors.GroupFailed, retry_after=1), 503, SERVER, "group_failed", headers=again(1)),
]
"""Any process may answer these."""
CLOCK = ErrorRow(
    of(errors.WrongClock, headers={"x-pds-now": "5"}),
    *(403, PERMISSION, "clock"),
    headers=(("x-pds-now", "5"),),
)
TRANSFER = ErrorRow(of(errors.TransferFailed), 503, SERVER, "transfer_failed")
"""Found by schedulers alone."""
GROUPS = [
    ErrorRow(of(errors.GroupError), 503, SERVER, "group_error", headers=again(1)),
    ErrorRow(of(errors.ProtocolError), 503, SERVER, "protocol_error", headers=again(1)),
    ErrorRow(of(errors.RankLost), 503, SERVER, "rank_lost", headers=again(1)),
    ErrorRow(of(errors.StageTimeout), 503, SERVER, "stage_timeout", headers=again(1)),
    ErrorRow(of(errors.PortTaken), 503, SERVER, "port_taken", headers=again(1)),
]
HIDDEN = [
    ErrorRow(error, 500, SERVER, "internal_error", message=INTERNAL)
    for error in (
        of(PdsError),
        of(errors.ConfigError),
        ClientSlow("größer"),
        of(errors.ClientGone),
        ValueError("größer"),
    )
]
"""The API server answers no more than that they happened."""
ROUTES = [
    ErrorRow(HTTPException(404), 404, INVALID, "not_found", message="Not Found"),
    ErrorRow(
        HTTPException(405, headers={"Allow": "GET"}),
        *(405, INVALID, "method_not_allowed"),
        headers=(("allow", "GET"),),
        message="Method Not Allowed",
    ),
]
OPEN = [
    ErrorRow(of(PdsError), 500, SERVER, "internal_error"),
    ErrorRow(of(errors.ConfigError), 500, SERVER, "config_error"),
]
"""The router says more about these."""


def test_the_table_has_every_error() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    rows = [*REQUESTS, CLOCK, TRANSFER, *GROUPS, *HIDDEN]
    assert {kind for kind in kinds if issubclass(kind, PdsError)} <= {type(r.error) for r in rows}


@pytest.mark.parametrize("row", [*REQUESTS, CLOCK, *GROUPS, *HIDDEN, *ROUTES], ids=str)
def test_the_api_server_answers(row: ErrorRow) -> None:
    assert answered(row.error) == (row.status, compact(row.body), headers(row))


@pytest.mark.parametrize("row", [*REQUESTS, TRANSFER], ids=str)
def test_the_api_server_answers_what_the_scheduler_found(row: ErrorRow) -> None:
    assert isinstance(row.error, PdsError)
    sent = failure("r", row.error)
    assert (sent.code, sent.status, sent.message) == (row.code, row.status, row.message)
    came = decode(encode(sent))
    assert isinstance(came, Failed)
    nameless = replace(row, param=None)  # the message carries no field's name
    content = answered(RequestFailed(came))
    assert content == (row.status, compact(nameless.body), headers(nameless))


@pytest.mark.parametrize("row", [*REQUESTS, TRANSFER, *OPEN], ids=str)
def test_the_router_answers(row: ErrorRow) -> None:
    assert isinstance(row.error, PdsError)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(answer_error(send, row.error, [(b"x-more", b"1")]))
    content = json.dumps(row.body).encode()
    given = [(b"content-type", b"application/json")]
    given += [(n.encode(), v.encode()) for n, v in row.headers if n == "retry-after"]
    given += [(b"x-more", b"1"), (b"content-length", b"%d" % len(content))]
    assert sent == [
        {"type": "http.response.start", "status": row.status, "headers": given},
        {"type": "http.response.body", "body": content},
    ]


def answered(error: Exception) -> tuple[int, bytes, list[tuple[str, str]]]:
    answer = response(error)
    given = [(name.decode(), value.decode()) for name, value in answer.raw_headers]
    return answer.status_code, bytes(answer.body), given


def headers(row: ErrorRow) -> list[tuple[str, str]]:
    length = ("content-length", str(len(compact(row.body))))
    return [*row.headers, length, ("content-type", "application/json")]


def compact(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
