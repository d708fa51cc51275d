"""A PDServing is deleted and applied again: garbage collection takes what it had, or leaves it."""

from typing import TYPE_CHECKING, Any

from pds_operator import names
from pds_operator.facts.reading import owner_uid

if TYPE_CHECKING:
    from simulation.world import SimulatedWorld

Object = dict[str, Any]
ORPHANED_WITHIN = 2.0


class Successors:
    """What users do, and the garbage collector of what they leave behind."""

    def __init__(self, world: "SimulatedWorld") -> None:
        self._world, self._clock, self._server = world, world.clock, world.server
        self._count = 0

    def begin_anew(self) -> None:
        """`kubectl delete --wait=false`, and an apply at once: requests may find nothing."""
        live = self._server.find(names.KIND, "chat")
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        self._clock.note("the PDServing is deleted, and applied at once")
        self._world.judge.lenient = True
        self._succeed(live)

    def leave_behind(self) -> None:
        """`kubectl delete --cascade=orphan`, and an apply: no request may fail."""
        live = self._server.find(names.KIND, "chat")
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        owned = self._owned(live["metadata"]["uid"])
        if any(names.NAME not in obj["metadata"].get("labels", {}) for obj in owned):
            return  # nothing would say that these were ours
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

    def _same(self, obj: Object) -> Object | None:
        live = self._server.find(obj["kind"], obj["metadata"]["name"])
        same = live is not None and live["metadata"]["uid"] == obj["metadata"]["uid"]
        return live if same else None
