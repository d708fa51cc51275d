"""A model of the API server: versions, uids, preconditions, and a log that watches follow.

Objects are never changed in place: each write makes a new one, so that a reader's copy is what it
was when it was read.
"""

import base64
import copy
import sys
from collections.abc import Callable
from typing import Any

import field_owners
from pds_operator import errors, names
from pds_operator.decide.diff import CHANGING
from simulation.clock import Clock

Object = dict[str, Any]
Place = tuple[str, str]
"""(kind, name): everything is in one namespace."""
NAMESPACE = "team"


class ApiServer:
    """What etcd holds, and who hears of changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.quota: dict[str, int] = {}
        """By kind: so many objects may be there. What is there already stays."""
        self.objects: dict[Place, Object] = {}
        self.version = 0
        self.watchers: list[Callable[[str, Object], None]] = []
        """Called with ("PUT" or "GONE", object) at each change, in order."""
        self.controllers: list[Callable[[str, Object, Object | None], None]] = []
        """The cluster's own: called with what changed, what it is now and what it was."""
        self.watched: Callable[[str, str, Object, Object | None], None] = lambda *_: None
        """The judge: (by, verb, wanted, live) before a write takes place."""

    def find(self, kind: str, name: str) -> Object | None:
        return self.objects.get((kind, name))

    def all(self, kind: str) -> list[Object]:
        return [obj for (other, _), obj in self.objects.items() if other == kind]

    def get(self, kind: str, name: str) -> Object:
        """Raises Missing."""
        live = self.objects.get((kind, name))
        if live is None:
            raise errors.Missing(404, "NotFound", f"{kind} {name} not found")
        return live

    def create(self, by: str, obj: Object) -> Object:
        """Raises Conflict when the name is taken."""
        kind, meta = obj["kind"], obj["metadata"]
        if kind == "Event":
            self.watched(by, "say", obj, None)
            return obj
        live = self.objects.get((kind, meta["name"]))
        if live is not None:
            raise errors.Conflict(409, "AlreadyExists", f"{kind} {meta['name']} exists")
        self.admit(kind)
        self.watched(by, "create", obj, None)
        made = {**obj, "metadata": {**meta, "uid": f"uid-{self.version}", "generation": 1}}
        made["metadata"]["creationTimestamp"] = self._clock.text()
        if kind == "Secret":
            text = made.pop("stringData")
            made["data"] = {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}
        return self._put(field_owners.created(made, names.MANAGER) if _owned(made) else made)

    def admit(self, kind: str) -> None:
        """Raises AdmissionDenied when the quota of that kind is full."""
        if len(self.all(kind)) >= self.quota.get(kind, sys.maxsize):
            said = f"{kind} is forbidden: exceeded quota: full, requested: 1"
            raise errors.from_status(403, {"reason": "Forbidden", "message": said})

    def patch(self, by: str, kind: str, name: str, patch: Object, verb: str = "patch") -> Object:
        """Merge patch, or an apply. Raises Missing, and Conflict for another uid."""
        live = self.get(kind, name)
        wanted = patch["metadata"].get("uid")
        if wanted is not None and wanted != live["metadata"]["uid"]:
            raise errors.Conflict(409, "Conflict", f"{kind} {name} has another uid")
        version = live["metadata"]["resourceVersion"]
        if patch["metadata"].get("resourceVersion", version) != version:
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        self.watched(by, verb, patch, live)
        made = _written(live, patch, verb)
        if made == live:
            return live
        if made.get("spec") != live.get("spec"):
            made["metadata"]["generation"] = live["metadata"].get("generation", 1) + 1
        return self._put(made)

    def set_condition(self, by: str, name: str, patch: Object) -> Object:
        """A pod's status.conditions, merged by type."""
        live = self.get("Pod", name)
        if patch["metadata"]["uid"] != live["metadata"]["uid"]:
            raise errors.Conflict(409, "Conflict", f"Pod {name} has another uid")
        self.watched(by, "gate", patch, live)
        [condition] = patch["status"]["conditions"]
        status = live.get("status") or {}
        kept = [c for c in status.get("conditions", []) if c["type"] != condition["type"]]
        status = {**status, "conditions": [*kept, condition]}
        meta = live["metadata"]
        managed = written(meta, names.MANAGER, self._clock.text())
        return self._put({**live, "metadata": {**meta, "managedFields": managed}, "status": status})

    def replace(self, by: str, obj: Object) -> Object:
        """PUT. Raises Conflict when somebody wrote since it was read."""
        live = self.get(obj["kind"], obj["metadata"]["name"])
        if obj["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        self.watched(by, "replace", obj, live)
        return self._put({**obj, "metadata": {**obj["metadata"]}})

    def delete(self, by: str, kind: str, name: str, uid: str, grace: int | None) -> None:
        """A pod that runs is given its grace; everything else is gone at once."""
        live = self.get(kind, name)
        if uid != live["metadata"]["uid"]:
            raise errors.Conflict(409, "Conflict", f"{kind} {name} has another uid")
        wanted = {"kind": kind, "metadata": {"name": name}, "grace": grace}
        self.watched(by, "delete", wanted, live)
        if kind != "Pod" or not (live.get("spec") or {}).get("nodeName"):
            self.remove(live)
            return
        meta = live["metadata"]
        own = live["spec"].get("terminationGracePeriodSeconds", 30)
        until = self._clock.now + (own if grace is None else grace)
        if meta.get("until", until + 1) <= until:
            return
        self._put(
            {
                **live,
                "metadata": {
                    **meta,
                    "deletionTimestamp": self._clock.text(until - self._clock.now),
                    "until": until,
                },
            }
        )

    def remove(self, live: Object) -> None:
        """It is gone, and so is all that it controlled."""
        place = live["kind"], live["metadata"]["name"]
        if self.objects.get(place, live)["metadata"]["uid"] != live["metadata"]["uid"]:
            return
        if self.objects.pop(place, None) is None:
            return
        self.version += 1
        last = {**live, "metadata": {**live["metadata"], "resourceVersion": str(self.version)}}
        self._tell("GONE", last, live)

    def put(self, obj: Object) -> Object:
        """A write by the cluster's own controllers, or by people: nobody refuses it."""
        meta = {**obj["metadata"]}
        meta.setdefault("uid", f"uid-{self.version}")
        meta.setdefault("namespace", NAMESPACE)
        meta.setdefault("creationTimestamp", self._clock.text())
        meta.setdefault("generation", 1)
        return self._put({**obj, "metadata": meta})

    def hide(self, live: Object) -> None:
        """Somebody takes away the label that watches select by: they say that it is gone."""
        self.version += 1
        meta = {**live["metadata"], "resourceVersion": str(self.version)}
        labels = {key: value for key, value in meta["labels"].items() if key != names.NAME}
        made = {**live, "metadata": {**meta, "labels": labels}}
        self.objects[live["kind"], meta["name"]] = made
        for watcher in list(self.watchers):
            watcher("GONE", {**live, "metadata": meta})
        for controller in self.controllers:
            controller("PUT", made, live)

    def _put(self, obj: Object) -> Object:
        """`obj` has metadata of its own, which takes the new version."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        place = obj["kind"], obj["metadata"]["name"]
        before = self.objects.get(place)
        self.objects[place] = obj
        self._tell("PUT", obj, before)
        return obj

    def _tell(self, what: str, obj: Object, before: Object | None) -> None:
        for watcher in list(self.watchers):
            watcher(what, obj)
        for controller in self.controllers:
            controller(what, obj, before)


def written(meta: Object, manager: str, at: str) -> list[Object]:
    """managedFields of an object whose status `manager` has just written."""
    entry = {"manager": manager, "operation": "Update", "subresource": "status", "time": at}
    return [e for e in meta.get("managedFields", []) if e["manager"] != manager] + [entry]


def _owned(obj: Object) -> bool:
    """Whether owners of its fields are kept: where they decide anything."""
    return obj["kind"] in CHANGING and not obj.get("immutable")


def _written(live: Object, patch: Object, verb: str) -> Object:
    """Raises ApiError: two ports of a Service have one name."""
    if not _owned(live):
        return merged(live, patch)
    if verb == "apply":
        made = field_owners.applied(copy.deepcopy(live), patch, names.MANAGER)
    else:
        made = field_owners.updated(live, merged(live, patch), names.MANAGER)
    ports = [port.get("name") for port in (made.get("spec") or {}).get("ports") or []]
    if len(ports) != len(set(ports)):
        raise errors.from_status(422, {"message": f"spec.ports: Duplicate value: {ports}"})
    return made


def merged(base: Any, patch: Any) -> Any:
    """`patch` over `base`; None removes a key."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
