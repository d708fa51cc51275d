"""The engine's errors: one small tree, each with a stable code and what to do about it.

PdsError
├── ConfigError        a setting is wrong: names the key, the value and the cure; exit code 78
├── RequestError       the client's fault, or the server's load: answered as an OpenAI error object
│   ├── InvalidRequest   400, `param` names the field
│   ├── TooLong          400, prompt + max_tokens above max_model_len
│   ├── UnknownModel     404
│   ├── Unauthorized     401
│   ├── Forbidden        403, an internal header or call without a valid signature
│   │   └── WrongClock     403, a signature that is good, and out of date by this clock
│   ├── BodyTimeout      408, the body did not come in time
│   ├── BodyTooLarge     413
│   ├── DeadlinePassed   504, the request was not done in the time it was given
│   ├── Unexpected       500, a fault of ours while this one request was handled
│   ├── Overloaded       429, a queue's bound is reached; `retry_after` in seconds
│   ├── NotFinite        500, the model's own numbers have no finite value for this request
│   └── Unavailable      503, draining, not ready, or no backend to answer
│       ├── Drained        503, given up at a drain's deadline
│       ├── Preempted      503, put out for want of KV pages
│       ├── NotRead        503, a large body was not read in time, or its reader ended
│       └── GroupFailed    503, the group failed while the request was with it
└── GroupError         a rank, stage or peer failed: the request may be retried elsewhere
    ├── ProtocolError    a message out of order, of a foreign incarnation, or malformed
    ├── RankLost         names the rank that died or fell silent
    ├── StageTimeout     names the stage, its last step and its mailbox depths
    ├── PortTaken        another process has a port that is ours: names it and what it is for
    └── TransferFailed   a hand-over was refused, aborted, or lost its peer
"""

from collections.abc import Mapping
from typing import ClassVar

EXIT_CONFIG = 78
"""Exit status of a configuration error (sysexits' EX_CONFIG): the operator does not retry it."""


class PdsError(Exception):
    """Base of all our errors: a message that names the fault, and a hint that names the cure."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(PdsError):
    """A setting is wrong; nothing but a changed setting helps."""

    code = "config_error"


class RequestError(PdsError):
    """Base of what a client is told. `status` is HTTP's, `param` the field of the body."""

    code = "invalid_request"
    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"

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


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"
    status = 401
    kind = "authentication_error"


class Forbidden(RequestError):
    """An internal header or call that the control key did not sign."""

    code = "forbidden"
    status = 403
    kind = "permission_error"


class WrongClock(Forbidden):
    """The control key signed it, at another time than ours. `headers` of the answer tell ours."""

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
    """The request was not done in the time that it was given."""

    code = "deadline_passed"
    status = 504
    kind = "timeout_error"


class Unexpected(RequestError):
    """A fault of ours while one request was handled, which ends that request alone."""

    code = PdsError.code
    status = 500
    kind = "server_error"


class Overloaded(RequestError):
    """A queue's bound is reached; ask again after `retry_after` seconds."""

    code = "overloaded"
    status = 429
    kind = "rate_limit_error"


class NotFinite(RequestError):
    """The model computed NaN or infinity for this request: no token can be chosen.

    It says nothing of the group: the same weights give the same numbers in any other.
    """

    code = "not_finite"
    status = 500
    kind = "server_error"


class Unavailable(RequestError):
    """Nothing can answer just now: draining, not ready, or every backend is down."""

    code = "unavailable"
    status = 503
    kind = "server_error"


class Drained(Unavailable):
    """A drain's deadline has passed: what is left goes on in another group."""

    code = "drained"


class Preempted(Unavailable):
    """A decode group had no page for the next token: the stream goes on elsewhere, or later."""

    code = "preempted"


class NotRead(Unavailable):
    """What reads large bodies ended with this one, or was not done in time.

    An attempt, since the body may be the cause, but no fault of the group, which goes on."""

    code = "body_not_read"


class GroupFailed(Unavailable):
    """The group failed while the request was with it, and may have failed of it: whoever sends it
    on counts that as an attempt. `unavailable` says that nothing was begun."""

    code = "group_failed"


class GroupError(PdsError):
    """A part of the group, or its peer, failed: the request may succeed elsewhere."""

    code = "group_error"


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
    """A hand-over was refused, aborted, or lost its peer."""

    code = "transfer_failed"
