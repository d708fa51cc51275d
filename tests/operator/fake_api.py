"""An API server in memory, at the edge alone: objects, versions, uids, owners, refusals."""

import base64
import copy
import itertools
from collections.abc import Callable
from typing import Any

import field_owners
from pds_operator import errors, names
from pds_operator.facts.observed import rfc3339
from pds_operator.run.cluster import Store

Object = dict[str, Any]
ROUTER = {"pdserving.io/name": "chat", "pdserving.io/role": "router"}


class FakeApi:
    """What reconciling uses of `pds_operator.run.api.Api`; a store sees every change."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.calls: list[str] = []
        self.store: Store | None = None
        self.refuse: Callable[[str, Object], Exception | None] = lambda verb, obj: None
        self.webhook: Callable[[Object], None] = lambda obj: None
        """Changes what an apply or a patch makes, as an admission webhook may."""
        self.clock: Callable[[], float] | None = None
        """Unix seconds, by which creations are stamped; None: they are not."""
        self._counter = itertools.count(1)

    def put(self, obj: Object) -> Object:
        obj = copy.deepcopy(obj)
        meta = obj["metadata"]
        meta.setdefault("uid", f"uid-{next(self._counter)}")
        meta.setdefault("generation", 1)
        meta["resourceVersion"] = str(next(self._counter))
        self.objects[obj["kind"], meta["namespace"], meta["name"]] = obj
        self._show(obj)
        return copy.deepcopy(obj)

    def put_set(self, name: str, deployment: Object) -> Object:
        """The Deployment controller makes a ReplicaSet."""
        owner = {"kind": "Deployment", "name": name, "uid": deployment["metadata"]["uid"]}
        meta = {"name": f"{name}-set", "namespace": "team", "labels": ROUTER}
        meta["ownerReferences"] = [{**owner, "controller": True}]
        return self.put({"kind": "ReplicaSet", "metadata": meta, "spec": {}})

    def put_router(self, name: str, controller: Object | None, ip: str = "10.0.1.1") -> Object:
        """A ready pod with a router's labels, made by a ReplicaSet or by anybody."""
        meta = {"name": name, "namespace": "team", "labels": ROUTER}
        if controller is not None:
            owner = {"kind": controller["kind"], "uid": controller["metadata"]["uid"]}
            meta["ownerReferences"] = [{**owner, "controller": True}]
        status = {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}
        return self.put({"kind": "Pod", "metadata": meta, "status": status})

    def one(self, kind: str, name: str) -> Object:
        return self.objects[kind, "team", name]

    def names(self, kind: str) -> list[str]:
        return sorted(name for other, _, name in self.objects if other == kind)

    async def get(self, kind: str, namespace: str, name: str) -> Object:
        kind = kind.partition(".")[0]
        try:
            return copy.deepcopy(self.objects[kind, namespace, name])
        except KeyError:
            raise errors.Missing(404, "NotFound", f"{kind} {name}") from None

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        kind, meta = obj["kind"], obj["metadata"]
        if not dry_run:
            self._called("create", obj)
        if kind == "Event":
            return obj
        self._may("create", obj)
        if (kind, meta["namespace"], meta["name"]) in self.objects:
            raise errors.Conflict(409, "AlreadyExists", f"{kind} {meta['name']} exists")
        if dry_run:
            return obj
        made = copy.deepcopy(obj)
        if self.clock is not None:
            made["metadata"]["creationTimestamp"] = rfc3339(self.clock())
        if kind == "Secret":
            text = made.pop("stringData")
            made["data"] = {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}
        if kind == "Deployment":
            made["spec"].setdefault("replicas", 1)
        return self.put(field_owners.created(made, names.MANAGER))

    async def apply(self, obj: Object) -> Object:
        self._called("apply", obj)
        live = self._live(obj["kind"], obj["metadata"])
        made = field_owners.applied(live, obj, names.MANAGER)
        if made["kind"] == "Deployment":
            made["spec"].setdefault("replicas", 1)
        _validate(made)
        return self._write(made, live)

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        self._called("patch", {"kind": kind, "metadata": {"name": name}})
        live = self._live(kind, {"namespace": namespace, "name": name, **patch["metadata"]})
        made = _merged(live, patch)
        if not subresource:
            made = field_owners.updated(live, made, names.MANAGER)
        return self._write(made, live)

    def edit(self, kind: str, name: str, patch: Object, manager: str = "kubectl-edit") -> Object:
        """Somebody else's merge patch."""
        live = self.one(kind, name)
        return self.put(field_owners.updated(live, _merged(live, patch), manager))

    def slice_of(self, service: str, ready: list[str]) -> Object:
        """What the endpoint controller writes: it has the labels of its Service."""
        live = self.one("Service", service)["metadata"]
        owner = {"apiVersion": "v1", "kind": "Service", "name": service, "uid": live["uid"]}
        meta = {
            "name": f"{service}-x",
            "namespace": live["namespace"],
            "labels": {**live.get("labels", {}), names.SERVICE_NAME: service},
            "ownerReferences": [{**owner, "controller": True}],
        }
        endpoints = [
            {"conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": pod}}
            for pod in ready
        ]
        known = self.objects.get(("EndpointSlice", meta["namespace"], meta["name"]), {})
        own = ("uid", "generation", "resourceVersion")
        meta |= {k: v for k, v in known.get("metadata", {}).items() if k in own}
        return {"kind": "EndpointSlice", "metadata": meta, "endpoints": endpoints}

    def remove(self, obj: Object) -> None:
        """It is gone."""
        meta = obj["metadata"]
        place = obj["kind"], meta["namespace"], meta["name"]
        if self.objects.get(place, obj)["metadata"]["uid"] == meta["uid"]:
            self.objects.pop(place, None)
            if self.store is not None:
                self.store.drop(copy.deepcopy(obj))

    def owned(self, uid: str) -> list[Object]:
        """What garbage collection takes when the owner of `uid` is gone, the last first."""
        direct = [
            obj
            for obj in self.objects.values()
            if any(o["uid"] == uid for o in obj["metadata"].get("ownerReferences") or [])
        ]
        below = [one for obj in direct for one in self.owned(obj["metadata"]["uid"])]
        return [*below, *direct]

    def orphan(self, uid: str) -> None:
        """As `kubectl delete --cascade=orphan` of the owner of `uid` leaves what it owned."""
        for obj in self.owned(uid):
            meta = obj["metadata"]
            kept = [o for o in meta.get("ownerReferences") or [] if o["uid"] != uid]
            if kept != meta.get("ownerReferences"):
                self.put({**obj, "metadata": {**meta, "ownerReferences": kept}})

    async def strategic(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str
    ) -> Object:
        self._called("patch", {"kind": kind, "metadata": {"name": name}})
        live = self._live(kind, {"namespace": namespace, "name": name, **patch["metadata"]})
        [condition] = patch["status"]["conditions"]
        status = live.setdefault("status", {})
        kept = [c for c in status.get("conditions", []) if c["type"] != condition["type"]]
        status["conditions"] = [*kept, condition]
        return self.put(live)

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        kind = kind.partition(".")[0]
        self._called("delete", {"kind": kind, "metadata": {"name": name}})
        live = self._live(kind, {"namespace": namespace, "name": name, "uid": uid})
        del self.objects[kind, namespace, name]
        if self.store is not None:
            self.store.drop(live)

    def _write(self, made: Object, live: Object) -> Object:
        """Nothing is written where nothing changes."""
        self.webhook(made)
        return self.put(made) if made != live else copy.deepcopy(live)

    def _live(self, kind: str, meta: Object) -> Object:
        live = self.objects.get((kind, meta["namespace"], meta["name"]))
        if live is None:
            raise errors.Missing(404, "NotFound", meta["name"])
        if meta.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise errors.Conflict(409, "Conflict", "another uid")
        version = live["metadata"]["resourceVersion"]
        if meta.get("resourceVersion", version) != version:
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        return copy.deepcopy(live)

    def _called(self, verb: str, obj: Object) -> None:
        name = obj["metadata"].get("name", obj.get("reason", ""))
        self.calls.append(f"{verb} {obj['kind']} {name}")

    def _may(self, verb: str, obj: Object) -> None:
        error = self.refuse(verb, obj)
        if error is not None:
            raise error

    def _show(self, obj: Object) -> None:
        if self.store is None or obj["kind"] == "Secret":  # which nobody watches
            return
        if obj["kind"] == "PDServing":
            self.store.put_parent(copy.deepcopy(obj))
        else:
            self.store.put(copy.deepcopy(obj))


def _validate(obj: Object) -> None:
    """As the API server does: two ports of one name are refused, of a Service and a container."""
    spec = obj.get("spec") or {}
    places = [spec] if obj["kind"] == "Service" else []
    if obj["kind"] == "Deployment":
        places = spec["template"]["spec"]["containers"]
    for place in places:
        named = [port.get("name") for port in place.get("ports") or []]
        if len(named) != len(set(named)):
            raise errors.from_status(422, {"message": f"ports: Duplicate value: {named}"})


def _merged(base: Any, patch: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result
