"""What pods answer over HTTP, checked: a pod may say anything, and is believed in bounds. Pure."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pds_operator.facts.observed import LeaderState, RouterView

STATE_BYTES = 256 << 10
BACKENDS_BYTES = 1 << 20
"""Above them an answer is none. A router says some 500 bytes about each group."""

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Text = Annotated[str, Field(max_length=1024)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Offset = Annotated[float, Field(ge=-1e10, le=1e10, allow_inf_nan=False)]


class BadAnswer(ValueError):
    """It is no answer of ours: too large, no JSON, or of other types."""


class _Answer(BaseModel):
    """Fields that are not named here are none of the operator's business."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _KernelsAnswer(_Answer):
    manifest: Text | None = None
    compiles_after_ready: Count = 0


class _StateAnswer(_Answer):
    in_flight: Count = 0
    transfers_in_flight: Count = 0
    draining: bool = False
    kv_fingerprint: Text | None = None
    protocol: Count | None = None
    key_id: Text | None = None
    kernels: _KernelsAnswer | None = None


class BackendAnswer(_Answer):
    """One group as a router reports it in /pds/backends, where it is the router's `Backend`."""

    pod: Text
    uid: Text | None = None
    routable: bool = False
    requests: Count = 0
    failures: Count = 0
    in_flight: Count = 0
    clock_offset: Offset = 0.0
    startup: Annotated[dict[Text, Seconds], Field(max_length=32)] = {}
    """Seconds of each phase of its start. Routers of the release before say nothing of it."""


class _BackendsAnswer(_Answer):
    backends: Annotated[list[BackendAnswer], Field(max_length=10_000)]


def engine_state(body: bytes | str, clock: float = 0.0) -> LeaderState:
    """An answer of /pds/state, from a clock so far ahead of ours. Raises BadAnswer."""
    answer = _parse(_StateAnswer, body)
    kernels = answer.kernels or _KernelsAnswer()
    return LeaderState(
        in_flight=answer.in_flight,
        transfers=answer.transfers_in_flight,
        draining=answer.draining,
        manifest=kernels.manifest or "",
        fingerprint=answer.kv_fingerprint or "",
        compiles_after_ready=kernels.compiles_after_ready,
        clock=clock,
        protocol=answer.protocol or 1,
        key_id=answer.key_id or "",
    )


def backends(body: bytes | str) -> list[BackendAnswer]:
    """An answer of /pds/backends. Raises BadAnswer."""
    return _parse(_BackendsAnswer, body).backends


def router_view(pod: str, body: bytes | str) -> RouterView:
    """What the router `pod` answered to /pds/backends. Raises BadAnswer."""
    listed = backends(body)
    return RouterView(
        pod,
        {item.pod: item.routable for item in listed},
        {item.pod: (item.requests, item.failures) for item in listed},
        {item.pod: item.uid for item in listed if item.uid},
        {item.pod: item.clock_offset for item in listed if item.clock_offset},
    )


_AnswerT = TypeVar("_AnswerT", bound=_Answer)


def _parse(kind: type[_AnswerT], body: bytes | str) -> _AnswerT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadAnswer(f"{where or 'the answer'}: {first['msg']}") from error
