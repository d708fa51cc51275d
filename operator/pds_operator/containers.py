"""What a pod's status says of its containers. Pure."""

import json
from typing import Any

from pds_operator.observed import seconds

Object = dict[str, Any]

WORDS_LIMIT = 600
"""Characters of what a pod says of itself."""


def waiting(status: Object) -> str:
    """Why a container of a pod cannot start; empty while it is on its way."""
    everything = (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    )
    for item in everything:
        waiting = (item.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def unscheduled(condition: Object | None) -> str:
    """What the scheduler says in a pod's PodScheduled; empty once the pod has a node."""
    if condition is None or condition.get("status") != "False":
        return ""
    return str(condition.get("message") or condition.get("reason") or "unschedulable")


def unprepared(conditions: Object) -> float | None:
    """Since when a node has had the pod without a sandbox for it (KEP-3085)."""
    prepared = conditions.get("PodReadyToStartContainers")
    if prepared is None or true(prepared) or not true(conditions.get("PodScheduled")):
        return None
    return since(conditions.get("PodScheduled"))


def fallen(status: Object) -> str:
    """A container beside the engine that has ended, for good, while the engine lives."""
    statuses = status.get("containerStatuses") or []
    if "running" not in (named(statuses, "engine").get("state") or {}):
        return ""
    for item in statuses:
        ended = (item.get("state") or {}).get("terminated")
        if ended:
            return f"container {item.get('name')} has ended with exit code {ended.get('exitCode')}"
    return ""


def fell(container: Object) -> str:
    """How a container ended last."""
    states = (container.get("state") or {}, container.get("lastState") or {})
    over = next((state["terminated"] for state in states if state.get("terminated")), None)
    if not over:
        return ""
    told = words(termination(over)) or str(over.get("reason") or "")
    return f"exit code {over.get('exitCode')}" + (f", {told}" if told else "")


def named(statuses: list[Object] | None, name: str) -> Object:
    """The status of one container; empty where there is none."""
    return next((item for item in statuses or [] if item.get("name") == name), {})


def failed(status: Object) -> Object:
    """What ended with an error: an init container, the engine, or else a sidecar."""
    everything = status.get("initContainerStatuses") or []
    everything = everything + sorted(
        status.get("containerStatuses") or [], key=lambda item: item.get("name") != "engine"
    )
    for item in everything:
        ended = (item.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return dict(item)
    return {}


def ended(obj: Object) -> bool:
    """The engine has ended, or an init container has failed; a pod with sidecars runs on.

    Init containers that are restarted are sidecars, and may fail.
    """
    status, spec = obj.get("status") or {}, obj.get("spec") or {}
    engine = named(status.get("containerStatuses"), "engine")
    if (engine.get("state") or {}).get("terminated"):
        return True
    sidecars = {
        item["name"]
        for item in spec.get("initContainers") or []
        if item.get("restartPolicy") == "Always"
    }
    return any(
        ((item.get("state") or {}).get("terminated") or {}).get("exitCode")
        for item in status.get("initContainerStatuses") or []
        if item.get("name") not in sidecars
    )


def disruption(status: Object, conditions: Object) -> str:
    """Why something else than its own containers ended a pod; empty where they did.

    A reason of the whole pod is the kubelet's: Evicted, OutOfcpu, UnexpectedAdmissionError, a
    node's shutdown. Only its own deadline is the pod's. DisruptionTarget: KEP-3329.
    """
    target = conditions.get("DisruptionTarget")
    if target is not None and true(target):
        return str(target.get("reason") or "DisruptionTarget")
    reason = str(status.get("reason") or "")
    return "" if status.get("phase") != "Failed" or reason == "DeadlineExceeded" else reason


def termination(ended: Object) -> str:
    """A termination message for people: the engine's {"error", "hint"} as one line."""
    text = str(ended.get("message") or "")
    try:
        note = json.loads(text)
    except ValueError:
        return text
    if not isinstance(note, dict) or not note.get("error"):
        return text
    return f"{note['error']} ({note['hint']})" if note.get("hint") else str(note["error"])


def words(value: object) -> str:
    """What a pod says, as a line that a condition may quote."""
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:WORDS_LIMIT]


def true(condition: Object | None) -> bool:
    """Whether a condition is there, and True."""
    return condition is not None and condition.get("status") == "True"


def since(condition: Object | None) -> float | None:
    """Since when a condition is True; None while it is not."""
    return seconds(condition.get("lastTransitionTime")) if condition and true(condition) else None
