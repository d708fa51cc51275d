"""Facts, read from objects and from what pods answer. Pure."""

import json
import re
from typing import Any

from pds_operator import names, revision
from pds_operator.facts import containers
from pds_operator.facts.clocks import status_window
from pds_operator.facts.observed import (
    NO_PROOF,
    GaveWay,
    Pod,
    Proof,
    Revision,
    RouterPod,
    Waited,
    WarmupPod,
    seconds,
)

Object = dict[str, Any]

ENDED = ("Failed", "Succeeded")
EAGER = 8
"""Kinds of work that a warm-up says it has not compiled: more are not read."""
KEY_ID = re.compile("[0-9a-f]{10}")


def owner_uid(obj: Object) -> str:
    """The uid of the controller that owns `obj`; empty when it has none."""
    return controller(obj)[1]


def controller(obj: Object) -> tuple[str, str]:
    """(what, uid) of the controller that owns `obj`, as ("PDServing.pdserving.io/chat", uid)."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            group = str(reference.get("apiVersion", "")).rpartition("/")[0]
            what = f"{reference.get('kind')}.{group}/{reference.get('name')}"
            return what, str(reference["uid"])
    return "", ""


def place_labels(obj: Object, pds: str) -> dict[str, str] | None:
    """The labels that say which engine pod `obj` is; None when it is none.

    Its place follows from its name, its revision from the ConfigMap that it mounts, its control key
    from the Secret: none of these can be changed.
    """
    place = names.pod_place(pds, obj["metadata"]["name"])
    if place is None:
        return None
    role, group, attempt, rank_pod = place
    found = names.common_labels(pds, role) | {
        names.GROUP_INDEX: str(group),
        names.ATTEMPT: str(attempt),
        names.RANK_POD: str(rank_pod),
    }
    for volume in (obj.get("spec") or {}).get("volumes") or []:
        mounted = str((volume.get("configMap") or {}).get("name", ""))
        digest = mounted.removeprefix(f"{pds}-")
        # A podTemplate may mount another there.
        if volume.get("name") == "config" and re.fullmatch(
            f"[0-9a-f]{{{revision.LENGTH}}}", digest
        ):
            found[names.REVISION] = digest
    if key := _key(obj, pds):
        found[names.KEY] = key
    return found


def _key(obj: Object, pds: str) -> str | None:
    """The id of the control key that a pod mounts; None: it mounts none of ours."""
    for volume in (obj.get("spec") or {}).get("volumes") or []:
        if volume.get("name") == "keys":
            secret = str((volume.get("secret") or {}).get("secretName", ""))
            key = secret.removeprefix(names.control_secret(pds)).removeprefix("-")
            if secret == names.control_secret(pds, key):
                return key if not key or KEY_ID.fullmatch(key) else None
    return None


def pod_facts(obj: Object) -> Pod | None:
    """The facts of an engine pod; None when it is not one (a router's, a warm-up's)."""
    meta, status = obj["metadata"], obj.get("status") or {}
    labels = meta.get("labels") or {}
    pds = labels.get(names.NAME, "")
    place, right = names.pod_place(pds, meta["name"]), place_labels(obj, pds)
    if place is None or right is None:
        return None
    role, group, attempt, rank_pod = place
    wrong = any(labels.get(key) != right[key] for key in right if key.startswith(names.GROUP))
    what, uid = controller(obj)
    annotations = meta.get("annotations") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    engine = containers.named(status.get("containerStatuses"), "engine")
    failed = containers.failed(obj)
    ended = ((failed or engine).get("state") or {}).get("terminated") or {}
    gate = conditions.get(names.ROUTABLE)
    created = seconds(meta.get("creationTimestamp")) or 0.0
    window = status_window(meta, created)
    crashes, runs_since = containers.crashing(obj)
    key, label = _key(obj, pds), str(labels.get(names.KEY, ""))
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        role=role,
        group=group,
        attempt=attempt,
        rank_pod=rank_pod,
        revision=right.get(names.REVISION) or labels.get(names.REVISION, ""),
        created=created,
        key=label if key is None and KEY_ID.fullmatch(label) else key or "",
        owner=uid,
        owned_by=what,
        managed=labels.get(names.MANAGED_BY) == names.MANAGER,
        wrong=tuple(right.items()) if wrong else (),
        phase=status.get("phase", "Pending"),
        ended=containers.ended(obj),
        disrupted=containers.disruption(status, conditions, failed),
        deleting=bool(meta.get("deletionTimestamp")),
        gone_by=_moment(meta.get("deletionTimestamp")),
        lost=status.get("reason") == "NodeLost",
        node=(obj.get("spec") or {}).get("nodeName") or "",
        gang=annotations.get(names.GANG, ""),
        draining=labels.get(names.DRAINING) == "true",
        drain_deadline=seconds(annotations.get(names.DRAIN_DEADLINE)),
        failures=_number(annotations.get(names.FAILURES)),
        disruptions=_number(annotations.get(names.DISRUPTIONS)),
        scheduled=containers.true(conditions.get("PodScheduled")),
        unscheduled=containers.unscheduled(conditions.get("PodScheduled")),
        unprepared=containers.unprepared(conditions),
        waits=containers.waiting(status),
        fallen=containers.fallen(status),
        crashes=crashes,
        runs_since=window.turned_ready(runs_since),
        unready=window.turned_ready(containers.since(conditions.get("ContainersReady"), "False")),
        started=bool(engine.get("started")),
        containers_ready=containers.true(conditions.get("ContainersReady")),
        ready=containers.true(conditions.get("Ready")),
        ready_since=window.turned_ready(containers.since(conditions.get("Ready"))),
        routable=None if gate is None else containers.true(gate),
        ip=status.get("podIP", ""),
        exit_code=ended.get("exitCode"),
        failed_at=window.ended(seconds(ended.get("finishedAt"))),
        message=containers.termination(ended)
        or containers.waiting(status)
        or containers.words(status.get("message")),
        proof=proof(containers.named(status.get("initContainerStatuses"), "warmup")),
    )


def warmup_facts(obj: Object) -> WarmupPod:
    """The facts of a warm-up Job's pod."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    failed = containers.failed(obj)
    found = proof(failed)
    ended = (failed.get("state") or {}).get("terminated") or {}
    error = ""
    if ended:
        known = found is not None and found.error != NO_PROOF
        text = found.error if known and found is not None else containers.termination(ended)
        error = text or f"container {failed['name']} ended with exit code {ended['exitCode']}"
    return WarmupPod(
        name=meta["name"],
        revision=(meta.get("labels") or {}).get(names.REVISION, ""),
        owner=owner_uid(obj),
        scheduled=containers.true(conditions.get("PodScheduled")),
        unscheduled=containers.unscheduled(conditions.get("PodScheduled")),
        waits="" if error else containers.waiting(status),
        error=error,
        volume=next((found.volume for found in _proofs(status) if found.volume), ""),
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        unprepared=containers.unprepared(conditions),
        targets=frozenset(found.target for found in _proofs(status)),
    )


def router_facts(obj: Object) -> RouterPod:
    """The facts of a router's pod."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    router = containers.named(status.get("containerStatuses"), "router")
    created = seconds(meta.get("creationTimestamp")) or 0.0
    since = containers.since(conditions.get("Ready"), "False")
    what, uid = controller(obj)
    return RouterPod(
        name=meta["name"],
        ip=status.get("podIP", ""),
        ready=containers.true(conditions.get("Ready")) and not meta.get("deletionTimestamp"),
        owned_by=what,
        owner=uid,
        waits=containers.waiting(status),
        unscheduled=containers.unscheduled(conditions.get("PodScheduled")),
        created=created,
        ends=bool(meta.get("deletionTimestamp")) or status.get("phase") in ENDED,
        unready=status_window(meta, created).turned_ready(since),
        restarts=router.get("restartCount") or 0,
        fell=containers.fell(router),
    )


def slice_facts(obj: Object) -> Object:
    """An EndpointSlice as it is kept: the pods that it lists as ready, `ready`, in place of them.

    Ready left out counts as true: so the API says.
    """
    meta = obj["metadata"]
    ready = [
        str(item["targetRef"].get("name", ""))
        for item in obj.get("endpoints") or []
        if (item.get("conditions") or {}).get("ready") is not False and item.get("targetRef")
    ]
    keep = ("name", "namespace", "uid", "labels", "ownerReferences")
    return {
        "kind": "EndpointSlice",
        "metadata": {key: meta[key] for key in keep if key in meta},
        "ready": sorted(ready),
    }


def _proofs(status: Object) -> list[Proof]:
    """Of a Job's pod, whose steps are containers of both kinds."""
    every = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    return [found for item in every if (found := proof(item)) is not None]


def proof(container: Object) -> Proof | None:
    """The warm-up's proof in the status of its container; None while there is none."""
    ended = (container.get("state") or {}).get("terminated")
    if not ended:
        return None
    try:
        note = json.loads(ended.get("message") or "")
        return Proof(
            manifest=str(note.get("manifest") or ""),
            compiled=int(note.get("compiled") or 0),
            reused=int(note.get("reused") or 0),
            seconds=float(note.get("seconds") or 0.0),
            error=containers.words(note.get("error")),
            volume=containers.words(note.get("volume")),
            eager=_eager(note.get("eager")),
            target=containers.words(note.get("target")),
        )
    except (ValueError, AttributeError, TypeError):
        return Proof(manifest="", error=NO_PROOF)


def _eager(said: Any) -> tuple[str, ...]:
    """A pod's own list, as far as it is one of words; warm-ups before this one have none."""
    words = said if isinstance(said, list) else []
    return tuple(containers.words(each) for each in words[:EAGER] if isinstance(each, str))


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
        groups=_counts(annotations.get(names.GROUPS)),
        waited=_waited(annotations.get(names.WAITED)),
        gave_way=_gave_way(annotations.get(names.GAVE_WAY)),
    )


def _counts(text: str | None) -> dict[str, int]:
    """What people may have edited: nothing, where it is not what we write."""
    try:
        stored = json.loads(text or "{}")
        return {role: int(stored[role]) for role in names.ROLES if role in stored}
    except (ValueError, TypeError):
        return {}


def _waited(text: str | None) -> Waited | None:
    try:
        stored = json.loads(text or "")
        return Waited(float(stored["since"]), float(stored["seconds"]), float(stored["at"]))
    except (ValueError, TypeError, KeyError):
        return None


def _gave_way(text: str | None) -> dict[str, GaveWay]:
    try:
        stored = json.loads(text or "{}")
        return {
            str(name): GaveWay(str(one["reason"]), str(one["message"]), float(one["at"]))
            for name, one in stored.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _moment(text: str | None) -> float | None:
    """A time that people may have edited."""
    try:
        return seconds(text)
    except ValueError:
        return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
