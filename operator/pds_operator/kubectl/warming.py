"""How far warm-ups are, of the logs that they write. Pure.

A warm-up writes a line of JSON for each artefact (docs/warm-up.md). Its container serves nothing
while it compiles, so its log is asked: whoever may read that may see it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pds_operator import names

Object = dict[str, Any]
TAIL_LINES = 50
"""Of a log: what a compiler says comes between."""
Count = Annotated[int, Field(ge=0, le=1 << 31)]


@dataclass(frozen=True, slots=True)
class Warming:
    """A container that warms up now."""

    pod: str
    container: str


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    n: Count
    of: Count
    left: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None
    stages: Annotated[list[Count], Field(max_length=4096)] = []
    """Engines of the release before say nothing of them."""


def warming(pods: Iterable[Object]) -> list[Warming]:
    """Those of `pods`: engines that begin, and Jobs, each of whose containers is a warm-up."""
    found = []
    for pod in pods:
        meta, status = pod["metadata"], pod.get("status") or {}
        job = (meta.get("labels") or {}).get(names.ROLE) == "warmup"
        inits = status.get("initContainerStatuses") or []
        for each in [*inits, *(status.get("containerStatuses") or [])] if job else inits:
            runs = "running" in (each.get("state") or {})
            if runs and (job or each.get("name") == "warmup"):
                found.append(Warming(meta["name"], each["name"]))
    return sorted(found, key=lambda each: (each.pod, each.container))


def progress(log: str) -> str:
    """What the end of a warm-up's log says: stage 1: 12 of 31, 40 s left."""
    for text in reversed(log.splitlines()):
        try:
            line = _Line.model_validate_json(text)
        except ValidationError:
            continue
        left = "" if line.left is None else f", {line.left:.0f} s left"
        return f"{_stages(line.stages)}{line.n} of {line.of}{left}"
    return "nothing is compiled yet"


def _stages(numbers: list[int]) -> str:
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return f"stage {first}: " if first == last else f"stages {first} to {last}: "
