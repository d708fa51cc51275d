"""The operator's errors, a small tree.

OperatorError             carries `reason` (CamelCase, for a condition) and `message`
├── SpecError             the object asks for what cannot be: names the field and the cure
├── SettingsError         the operator itself is set up wrongly
├── NotLeading            the lease is not ours: nothing may be written now
├── NameTaken             an object of that name exists and is not ours
├── FieldContested        an object is not as it was applied: somebody changes it at once
└── ApiError              the API server refused; `status` and `api_reason` as it gave them
    ├── Conflict          409: changed or vanished in between; the next round looks again
    ├── Gone              410: the watch must list anew
    ├── Missing           404
    ├── Invalid           422, or 400 for an unknown field: it is not what the server takes
    ├── Throttled         429, or 5xx with Retry-After: nothing was done; ask again when it says
    └── AdmissionDenied   403 of a quota, a LimitRange or an ending namespace: wait, say so
"""

LONGEST_WAIT = 60.0
"""Seconds that a server may make us wait by Retry-After."""


class OperatorError(Exception):
    """Base of all our errors."""

    reason = "OperatorError"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason:
            self.reason = reason


class SpecError(OperatorError):
    """The PDServing asks for what cannot be."""

    reason = "InvalidSpec"


class SettingsError(OperatorError):
    """The operator's own settings are wrong."""

    reason = "InvalidSettings"


class NotLeading(OperatorError):
    """Another replica of the operator holds the lease, or ours was not renewed in time."""

    reason = "NotLeading"


class NameTaken(OperatorError):
    """An object of the name that we need belongs to somebody else. It is left untouched."""

    reason = "NameTaken"


class FieldContested(OperatorError):
    """An object of ours is not as it was written: a field is unknown, or somebody changes it."""

    reason = "FieldContested"


class RevisionMissing(OperatorError):
    """Pods run what was made from a revision that is not stored any more."""

    reason = "RevisionMissing"


class GangUnknown(OperatorError):
    """The cluster lacks the kind by which a gang scheduler knows which pods belong together."""

    reason = "GangUnknown"


class ApiError(OperatorError):
    """The API server answered with an error."""

    reason = "ApiError"

    after = 0.0
    """Seconds that the server asks to wait before the next call."""

    def __init__(self, status: int, api_reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.api_reason = api_reason


class Conflict(ApiError):
    """409."""

    reason = "Conflict"


class Gone(ApiError):
    """410."""

    reason = "Gone"


class Missing(ApiError):
    """404."""

    reason = "Missing"


class Invalid(ApiError):
    """422; 400 where fields that the server does not know are refused."""

    reason = "Invalid"


class Throttled(ApiError):
    """429, or 5xx with Retry-After: the server has no room for the call now."""

    reason = "Throttled"


class AdmissionDenied(ApiError):
    """403 by a quota, a LimitRange or an ending namespace: an input of the plan, not a fault."""

    reason = "Refused"


def from_status(status: int, body: object, retry_after: str = "") -> ApiError:
    """The error for an answer ≥ 400.

    `body` is the decoded Status object, if it is one; `retry_after` the header of that name.
    """
    answer = body if isinstance(body, dict) else {}
    api_reason = str(answer.get("reason") or "")
    message = str(answer.get("message") or f"HTTP {status}")
    details = answer["details"] if isinstance(answer.get("details"), dict) else {}
    if status == 403:
        return _forbidden(status, api_reason, message, details.get("causes") or [])
    asked = retry_after or str(details.get("retryAfterSeconds") or "")
    if status == 429 or (status >= 500 and asked):
        error = Throttled(status, api_reason, message)
        error.after = min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 1.0
        return error
    if status == 400 and "strict decoding error" in message:
        return Invalid(status, api_reason, message)
    kinds = {404: Missing, 409: Conflict, 410: Gone, 422: Invalid}
    return kinds.get(status, ApiError)(status, api_reason, message)


def _forbidden(status: int, api_reason: str, message: str, causes: list[object]) -> ApiError:
    terminating = any(
        isinstance(cause, dict) and cause.get("reason") == "NamespaceTerminating"
        for cause in causes
    )
    if terminating or "because it is being terminated" in message:
        error: ApiError = AdmissionDenied(status, api_reason, message)
        error.reason = "NamespaceTerminating"
    elif "exceeded quota" in message or "failed quota" in message:
        error = AdmissionDenied(status, api_reason, message)
        error.reason = "QuotaExceeded"
    elif "usage per" in message or "limit to request ratio" in message:
        error = AdmissionDenied(status, api_reason, message)
        error.reason = "LimitRange"
    else:
        error = ApiError(status, api_reason, message)
        error.reason = "Forbidden"
    return error
