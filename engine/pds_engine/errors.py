"""The engine's errors: one small tree, each with a stable code and what to do about it.

A class says how a client gets it: `status` is HTTP's, `code` OpenAI's, and OpenAI's `type` follows
from the status. `error_object` makes the body, for the API server and the router alike.

PdsError
├── ConfigError        a setting is wrong: names the key, the value and the cure; exit code 78
├── RequestError       the client's fault, or the server's load: answered as an OpenAI error object
│   ├── InvalidRequest   400, `param` names the field
│   ├── TooLong          400, prompt + max_tokens above max_model_len
│   ├── UnknownModel     404
│   ├── NoRoute          404, 405: no such path, or not by this method
│   ├── Unauthorized     401
│   ├── Forbidden        403, an internal header or call without a valid signature
│   │   └── WrongClock     403, a signature that is good, and out of date by this clock
│   ├── BodyTimeout      408, the body did not come in time
│   ├── BodyTooLarge     413
│   ├── DeadlinePassed   504, a timeout_error: it was not done in the time it was given
│   ├── Unexpected       500, a fault of ours while this one request was handled
│   ├── Overloaded       429, a queue's bound is reached; `retry_after` in seconds
│   ├── NotFinite        500, the model's own numbers have no finite value for this request
│   └── Unavailable      503, draining, not ready, or no backend to answer
│       ├── Drained        503, given up at a drain's deadline
│       ├── Preempted      503, no KV page was left: it migrates
│       ├── NotRead        503, a large body was not read in time, or its reader ended
│       └── GroupFailed    503, the group failed while the request was with it
├── GroupError         503, a rank, stage or peer failed: the request may be retried elsewhere
│   ├── ProtocolError    a message out of order, of a foreign incarnation, or malformed
│   ├── RankLost         names the rank that died or fell silent
│   ├── StageTimeout     names the stage, its last step and its mailbox depths
│   ├── PortTaken        another process has a port that is ours: names it and what it is for
│   └── TransferFailed   a hand-over was refused, aborted, or lost its peer
└── ClientGone         the client closed its connection: nobody is answered
"""

from collections.abc import Mapping
from types import MappingProxyType

EXIT_CONFIG = 78
"""Exit status of a configuration error (sysexits' EX_CONFIG): the operator does not retry it."""


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
_NONE: Mapping[str, str] = MappingProxyType({})


class PdsError(Exception):
    """Base of all our errors: a message that names the fault, and a hint that names the cure."""

    code: str = "internal_error"
    status: int = 500
    """HTTP's, where a client gets it."""
    param: str | None = None
    """The field of the body that is wrong."""
    retry_after: int | None = None
    """Seconds after which the client may come again."""
    headers: Mapping[str, str] = _NONE
    """More headers of the answer, by lower-case names."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def type(self) -> str:
        """OpenAI's kind of error, by the status."""
        fault = "invalid_request_error" if self.status < 500 else "server_error"
        return _TYPES.get(self.status, fault)


class ConfigError(PdsError):
    """A setting is wrong; nothing but a changed setting helps."""

    code = "config_error"


class RequestError(PdsError):
    """Base of the errors that a client gets about its request."""

    code = "invalid_request"
    status = 400

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(RequestError):
    """The body is not what the API takes."""


class TooLong(RequestError):
    """Prompt and max_tokens together do not fit the model's context."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """No such model is served here."""

    code = "model_not_found"
    status = 404


class NoRoute(RequestError):
    """There is no such path, or it takes another method: `status` says which."""

    def __init__(
        self, message: str, status: int, *, hint: str = "", headers: Mapping[str, str] = _NONE
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.headers = headers


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"
    status = 401


class Forbidden(RequestError):
    """An internal header or call that the control key did not sign."""

    code = "forbidden"
    status = 403


class WrongClock(Forbidden):
    """The control key signed it, at another time than ours, which the answer's `headers` give."""

    code = "clock"

    def __init__(self, message: str, *, hint: str = "", headers: Mapping[str, str]) -> None:
        super().__init__(message, hint=hint)
        self.headers = headers


class BodyTimeout(RequestError):
    """The body did not come in time."""

    code = "body_timeout"
    status = 408


class BodyTooLarge(RequestError):
    """The body is above the bound."""

    code = "body_too_large"
    status = 413


class DeadlinePassed(RequestError):
    """The request was not done in the time that it was given.

    504, not 408: the request came whole, and the answer did not. Routers retry a 408 in another
    group, where the request would begin anew with all of its time.
    """

    code = "deadline_passed"
    status = 504


class Unexpected(RequestError):
    """A fault of ours while one request was handled. It ends no other request."""

    code = PdsError.code
    status = 500


class Overloaded(RequestError):
    """A queue's bound is reached; ask again after `retry_after` seconds."""

    code = "overloaded"
    status = 429


class NotFinite(RequestError):
    """The model computed NaN or infinity for this request: no token can be chosen.

    It says nothing about the group: the same weights give the same numbers in any other.
    """

    code = "not_finite"
    status = 500


class Unavailable(RequestError):
    """Nothing can answer just now: draining, not ready, or every backend is down."""

    code = "unavailable"
    status = 503


class Drained(Unavailable):
    """A drain's deadline has passed: open streams go on in another group."""

    code = "drained"


class Preempted(Unavailable):
    """A decode group had no page for the next token: the stream goes on elsewhere, or later."""

    code = "preempted"


class NotRead(Unavailable):
    """The process that reads large bodies ended with this one, or was not done in time.

    It counts as an attempt, since the body may be the cause, but not against the group."""

    code = "body_not_read"


class GroupFailed(Unavailable):
    """The group failed while the request was with it, perhaps because of it: a router counts that
    as an attempt. `unavailable` says that nothing was begun."""

    code = "group_failed"


class GroupError(PdsError):
    """A part of the group or its peer failed: the request may succeed elsewhere."""

    code = "group_error"
    status = 503
    retry_after: int | None = 1


class ProtocolError(GroupError):
    """A message that the protocol does not allow here."""

    code = "protocol_error"


class RankLost(GroupError):
    """A rank died or fell silent."""

    code = "rank_lost"


class StageTimeout(GroupError):
    """A stage made no progress on a step within step_timeout."""

    code = "stage_timeout"


class PortTaken(GroupError):
    """A port is in use. No setting is wrong: the group is made again, and may find it free."""

    code = "port_taken"


class TransferFailed(GroupError):
    """A hand-over was refused, aborted, or lost its peer. The group lives: ask again at once."""

    code = "transfer_failed"
    retry_after = None


class ClientGone(PdsError):
    """The client closed its connection: nobody reads the answer."""

    code = "client_gone"


def error_object(error: PdsError) -> dict[str, dict[str, str | None]]:
    """`{"error": {"message", "type", "param", "code"}}`, as the openai SDK reads it."""
    content = {
        "message": str(error),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return {"error": content}


def error_headers(error: PdsError) -> dict[str, str]:
    """Headers of an answer that is `error`, by lower-case names."""
    after = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return {**error.headers, **after}
