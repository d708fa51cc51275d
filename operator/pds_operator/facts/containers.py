"""What a pod's status says of its containers. Pure."""

import json
from typing import Any

from pds_operator.facts.observed import seconds

Object = dict[str, Any]

WORDS_LIMIT = 600
"""Characters of what a pod, its node or the scheduler says."""
LAST_WORDS_LIMIT = 4096
"""Of a termination message: as many as the kubelet keeps."""
CRASHES = 2
"""Restarts of a sidecar before it counts as one that crashes: one may be its node's."""
LOST = ("ContainerStatusUnknown", "Unknown")
"""What a kubelet says of containers that ran when its node went down: nobody saw their end."""


def waiting(status: Object) -> str:
    """Why a container of a pod cannot start; empty while it is on its way."""
    everything = (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    )
    for item in everything:
        waiting = (item.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return words(f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": "))
    return ""


def unscheduled(condition: Object | None) -> str:
    """What the scheduler says in a pod's PodScheduled; empty once the pod has a node."""
    if condition is None or condition.get("status") != "False":
        return ""
    return words(condition.get("message") or condition.get("reason")) or "unschedulable"


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


def crashing(obj: Object) -> tuple[str, float | None]:
    """A native sidecar that ends again and again, and since when it runs; None: it does not now.

    The pod is ready between its ends, for as long as it runs.
    """
    status, native = obj.get("status") or {}, sidecars(obj)
    for item in status.get("initContainerStatuses") or []:
        if item.get("name") in native and (item.get("restartCount") or 0) >= CRASHES:
            runs = (item.get("state") or {}).get("running")
            since = seconds(runs.get("startedAt")) if runs else None
            how = fell(item)  # a kubelet that starts it again forgets it for a while
            text = f"container {item['name']} ends again and again"
            return f"{text}: {how}" if how else text, since
    return "", None


def fell(container: Object) -> str:
    """How a container ended last."""
    states = (container.get("state") or {}, container.get("lastState") or {})
    over = next((state["terminated"] for state in states if state.get("terminated")), None)
    if not over:
        return ""
    last_words = words(termination(over)) or str(over.get("reason") or "")
    return f"exit code {over.get('exitCode')}" + (f", {last_words}" if last_words else "")


def named(statuses: list[Object] | None, name: str) -> Object:
    """The status of one container; empty where there is none."""
    return next((item for item in statuses or [] if item.get("name") == name), {})


def failed(obj: Object) -> Object:
    """What ended with an error: an init container, the engine, or else a container beside it.

    Native sidecars get SIGTERM when the engine has ended, and seldom end with 0.
    """
    status, native = obj.get("status") or {}, sidecars(obj)
    inits = status.get("initContainerStatuses") or []
    beside = sorted(
        status.get("containerStatuses") or [], key=lambda item: item.get("name") != "engine"
    )
    for item in [*(each for each in inits if each.get("name") not in native), *beside]:
        over = (item.get("state") or {}).get("terminated")
        if over and over.get("exitCode"):
            return dict(item)
    return {}


def sidecars(obj: Object) -> set[str]:
    """The init containers that are restarted: native sidecars (KEP-753)."""
    inits = (obj.get("spec") or {}).get("initContainers") or []
    return {str(item["name"]) for item in inits if item.get("restartPolicy") == "Always"}


def ended(obj: Object) -> bool:
    """The engine has ended, or an init container has failed; a pod with sidecars runs on.

    Init containers that are restarted are sidecars, and may fail.
    """
    status, native = obj.get("status") or {}, sidecars(obj)
    engine = named(status.get("containerStatuses"), "engine")
    if (engine.get("state") or {}).get("terminated"):
        return True
    return any(
        ((item.get("state") or {}).get("terminated") or {}).get("exitCode")
        for item in status.get("initContainerStatuses") or []
        if item.get("name") not in native
    )


def disruption(status: Object, conditions: Object, failed: Object) -> str:
    """Why something else than its own containers ended a pod; empty where they did.

    `failed` is the status of the container that ended with an error.

    A reason of the whole pod is the kubelet's: Evicted, OutOfcpu, UnexpectedAdmissionError, a
    node's shutdown. Only its own deadline is the pod's. DisruptionTarget: KEP-3329.
    """
    target = conditions.get("DisruptionTarget")
    if target is not None and true(target):
        return str(target.get("reason") or "DisruptionTarget")
    over = (failed.get("state") or {}).get("terminated") or {}
    if over.get("reason") in LOST:
        return str(over["reason"])
    reason = str(status.get("reason") or "")
    return "" if status.get("phase") != "Failed" or reason == "DeadlineExceeded" else reason


def termination(ended: Object) -> str:
    """A termination message for people, on one line: the engine's is {"error", "hint"}."""
    text = str(ended.get("message") or "")
    try:
        note = json.loads(text)
    except ValueError:
        note = None
    if isinstance(note, dict) and note.get("error"):
        text = f"{note['error']} ({note['hint']})" if note.get("hint") else str(note["error"])
    return words(text, LAST_WORDS_LIMIT)


def words(value: object, limit: int = WORDS_LIMIT) -> str:
    """What somebody says, as a line that a condition may quote and a terminal may show.

    What the API server would store otherwise (a lone surrogate) would be written again for ever.
    """
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]


def true(condition: Object | None) -> bool:
    """Whether a condition is there, and True."""
    return condition is not None and condition.get("status") == "True"


def since(condition: Object | None, status: str = "True") -> float | None:
    """Since when a condition has that status; None while it has another."""
    if condition is None or condition.get("status") != status:
        return None
    return seconds(condition.get("lastTransitionTime"))
