"""A PDServing is deleted and applied again: garbage collection takes what it had, or leaves it."""

from typing import TYPE_CHECKING, Any

from pds_operator import names
from pds_operator.facts import controller, owner_uid

if TYPE_CHECKING:
    from simulation.world import World

Object = dict[str, Any]
COLLECTED_WITHIN = 8.0
ORPHANED_WITHIN = 2.0


class Successors:
    """What users and the garbage collector do."""

    def __init__(self, world: "World") -> None:
        self._world, self._clock, self._server = world, world.clock, world.server
        self._count = 0
        self._gone: set[str] = set()
        """Uids of PDServings that are no more: what is made for one of them later goes, too."""
        self._server.controllers.append(self._changed)

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if what == "PUT" and before is None and owner_uid(obj) in self._gone:
            self._clock.after(self._clock.between(0.1, COLLECTED_WITHIN), self._collect, obj)

    def begin_anew(self) -> None:
        """`kubectl delete --wait=false`, and an apply at once: requests may find nothing."""
        live = self._server.find(names.KIND, "chat")
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        self._clock.note("the PDServing is deleted, and applied at once")
        self._world.judge.lenient = True
        self._succeed(live)
        self._gone.add(live["metadata"]["uid"])
        for obj in self._owned(live["metadata"]["uid"]):
            self._clock.after(self._clock.between(0.1, COLLECTED_WITHIN), self._collect, obj)

    def leave_behind(self) -> None:
        """`kubectl delete --cascade=orphan`, and an apply: no request may fail."""
        live = self._server.find(names.KIND, "chat")
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        self._clock.note("the PDServing is deleted, and all of it is left behind")
        meta = {**live["metadata"], "deletionTimestamp": self._clock.text()}
        live = self._server.put({**live, "metadata": meta})
        for obj in self._owned(meta["uid"]):
            self._clock.after(self._clock.between(0.0, ORPHANED_WITHIN), self._orphan, obj)
        self._clock.after(ORPHANED_WITHIN + 0.2, self._end, meta["uid"])

    def _owned(self, uid: str) -> list[Object]:
        return [obj for obj in self._server.objects.values() if owner_uid(obj) == uid]

    def _orphan(self, obj: Object) -> None:
        live = self._same(obj)
        if live is not None:
            known = {**live["metadata"], "ownerReferences": []}
            self._server.put({**live, "metadata": known})

    def _end(self, uid: str) -> None:
        """What was made while it was being deleted is left behind as well."""
        live = self._server.get(names.KIND, "chat")
        for obj in self._owned(uid):
            self._orphan(obj)
        self._succeed(live)
        self._gone.add(uid)

    def _succeed(self, live: Object) -> None:
        self._count += 1
        self._server.remove(live)
        uid = f"uid-chat-{self._count}"
        self._world.judge.succeeded(uid)
        generation = live["metadata"]["generation"] + 1
        meta = {"name": "chat", "namespace": live["metadata"]["namespace"], "uid": uid}
        kind = {"kind": names.KIND, "apiVersion": names.API_VERSION}
        meta["generation"] = generation
        self._server.put({**kind, "metadata": meta, "spec": live["spec"]})

    def _collect(self, obj: Object) -> None:
        live = self._same(obj)
        if live is None:
            return
        meta, kind = live["metadata"], live["kind"]
        if kind == "Pod":
            pod = self._world.kubelet.pods.get(meta["uid"])
            if pod is not None:
                self._world.judge.harmed([pod])
            self._server.delete("the collector", "Pod", meta["name"], meta["uid"], None)
            return
        self._server.remove(live)
        if kind == "Deployment":
            for router in list(self._world.serving.routers.values()):
                pod = self._server.find("Pod", router.name)
                of = f"ReplicaSet.apps/{meta['name']}-"
                if pod is not None and controller(pod)[0].startswith(of):
                    self._clock.after(self._clock.between(0.1, 3.0), self._collect_router, router)

    def _collect_router(self, router: Any) -> None:
        self._world.serving.end(router)

    def _same(self, obj: Object) -> Object | None:
        live = self._server.find(obj["kind"], obj["metadata"]["name"])
        same = live is not None and live["metadata"]["uid"] == obj["metadata"]["uid"]
        return live if same else None
