"""Facts, read from objects and from what pods answer. Pure."""

import json
from typing import Any

from pds_operator import names
from pds_operator.observed import (
    NO_PROOF,
    EngineState,
    Pod,
    Proof,
    Revision,
    RouterView,
    WarmupPod,
    seconds,
)

Object = dict[str, Any]

WORDS_LIMIT = 600
"""Characters of what a pod says of its volume."""


def owner_uid(obj: Object) -> str:
    """The uid of the controller that owns `obj`; empty when it has none."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return str(reference["uid"])
    return ""


def pod_facts(obj: Object) -> Pod | None:
    """The facts of an engine pod; None when it is not one (a router's, or labels are broken)."""
    meta, status = obj["metadata"], obj.get("status") or {}
    labels = meta.get("labels") or {}
    role = labels.get(names.ROLE, "")
    try:
        place = [int(labels[key]) for key in (names.GROUP_INDEX, names.ATTEMPT, names.RANK_POD)]
    except (KeyError, ValueError):
        return None
    if role not in names.ROLES:
        return None
    annotations = meta.get("annotations") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    engine = _container(status.get("containerStatuses"), "engine")
    failed = _failed_container(status)
    ended = (failed.get("state") or {}).get("terminated") or {}
    gate = conditions.get(names.ROUTABLE)
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        role=role,
        group=place[0],
        attempt=place[1],
        rank_pod=place[2],
        revision=labels.get(names.REVISION, ""),
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        owner=owner_uid(obj),
        phase=status.get("phase", "Pending"),
        deleting=bool(meta.get("deletionTimestamp")),
        lost=status.get("reason") == "NodeLost",
        gang=annotations.get(names.GANG, ""),
        draining=labels.get(names.DRAINING) == "true",
        drain_deadline=seconds(annotations.get(names.DRAIN_DEADLINE)),
        failures=_number(annotations.get(names.FAILURES)),
        scheduled=_true(conditions.get("PodScheduled")),
        unscheduled=unscheduled(conditions.get("PodScheduled")),
        started=bool(engine.get("started")),
        containers_ready=_true(conditions.get("ContainersReady")),
        ready=_true(conditions.get("Ready")),
        ready_since=_since(conditions.get("Ready")),
        routable=None if gate is None else _true(gate),
        ip=status.get("podIP", ""),
        exit_code=ended.get("exitCode"),
        failed_at=seconds(ended.get("finishedAt")),
        message=_told(ended) or waiting(status) or status.get("message", ""),
        proof=proof(_container(status.get("initContainerStatuses"), "warmup")),
    )


def warmup_facts(obj: Object) -> WarmupPod:
    """The facts of a warm-up Job's pod."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    failed = _failed_container(status)
    told = proof(failed)
    ended = (failed.get("state") or {}).get("terminated") or {}
    error = ""
    if ended:
        known = told is not None and told.error != NO_PROOF
        text = told.error if known and told is not None else _told(ended)
        error = text or f"container {failed['name']} ended with exit code {ended['exitCode']}"
    return WarmupPod(
        name=meta["name"],
        revision=(meta.get("labels") or {}).get(names.REVISION, ""),
        scheduled=_true(conditions.get("PodScheduled")),
        unscheduled=unscheduled(conditions.get("PodScheduled")),
        waits="" if error else waiting(status),
        error=error,
        volume=next((found.volume for found in _proofs(status) if found.volume), ""),
        created=seconds(meta.get("creationTimestamp")) or 0.0,
    )


def _proofs(status: Object) -> list[Proof]:
    """Of a Job's pod, whose steps are containers of both kinds."""
    every = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    return [told for item in every if (told := proof(item)) is not None]


def proof(container: Object) -> Proof | None:
    """The warm-up's proof in the status of its container; None while there is none."""
    ended = (container.get("state") or {}).get("terminated")
    if not ended:
        return None
    try:
        told = json.loads(ended.get("message") or "")
        return Proof(
            manifest=str(told.get("manifest") or ""),
            compiled=int(told.get("compiled") or 0),
            reused=int(told.get("reused") or 0),
            seconds=float(told.get("seconds") or 0.0),
            error=str(told.get("error") or ""),
            volume=_words(told.get("volume")),
        )
    except (ValueError, AttributeError, TypeError):
        return Proof(manifest="", error=NO_PROOF)


def engine_state(told: Object) -> EngineState:
    """An answer of /pds/state."""
    kernels = told.get("kernels") or {}
    return EngineState(
        in_flight=int(told.get("in_flight") or 0),
        transfers=int(told.get("transfers_in_flight") or 0),
        draining=bool(told.get("draining")),
        manifest=str(kernels.get("manifest") or ""),
        fingerprint=str(told.get("kv_fingerprint") or ""),
        compiles_after_ready=int(kernels.get("compiles_after_ready") or 0),
    )


def router_view(pod: str, told: Object) -> RouterView:
    """An answer of /pds/backends."""
    backends = told.get("backends") or []
    return RouterView(
        pod,
        {str(item.get("pod")): bool(item.get("routable")) for item in backends},
        {
            str(item.get("pod")): (int(item.get("requests") or 0), int(item.get("failures") or 0))
            for item in backends
        },
        {str(item["pod"]): str(item["uid"]) for item in backends if item.get("uid")},
    )


def revision_facts(obj: Object, pds: str) -> Revision:
    """A ControllerRevision of ours."""
    meta = obj["metadata"]
    annotations = meta.get("annotations") or {}
    return Revision(
        digest=meta["name"].removeprefix(f"{pds}-"),
        number=int(obj.get("revision") or 0),
        uid=meta["uid"],
        data=obj.get("data") or {},
        failed=annotations.get(names.FAILED, ""),
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        targeted=_moment(annotations.get(names.TARGETED)),
        served=_moment(annotations.get(names.SERVED)),
    )


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


def _container(statuses: list[Object] | None, name: str) -> Object:
    return next((item for item in statuses or [] if item.get("name") == name), {})


def _failed_container(status: Object) -> Object:
    everything = (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    )
    for item in everything:
        ended = (item.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return dict(item)
    return {}


def _told(ended: Object) -> str:
    """A termination message for people: the engine's {"error", "hint"} as one line."""
    text = str(ended.get("message") or "")
    try:
        note = json.loads(text)
    except ValueError:
        return text
    if not isinstance(note, dict) or not note.get("error"):
        return text
    return f"{note['error']} ({note['hint']})" if note.get("hint") else str(note["error"])


def _words(value: object) -> str:
    """What a pod says, as a line that a condition may quote."""
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:WORDS_LIMIT]


def _true(condition: Object | None) -> bool:
    return condition is not None and condition.get("status") == "True"


def _since(condition: Object | None) -> float | None:
    return seconds(condition.get("lastTransitionTime")) if condition and _true(condition) else None


def _moment(text: str | None) -> float | None:
    """A time that people may have edited."""
    try:
        return seconds(text)
    except ValueError:
        return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
