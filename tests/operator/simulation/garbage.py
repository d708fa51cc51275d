"""A model of the garbage collector: what nobody owns any more goes."""

from typing import Any

from pds_operator.facts.reading import owner_uid
from simulation.clock import Clock
from simulation.server import ApiServer

Object = dict[str, Any]
COLLECTED_WITHIN = 6.0


class Garbage:
    """Deletes in the background, as ours asks for and as kubectl does."""

    def __init__(self, clock: Clock, server: ApiServer) -> None:
        self._clock, self._server = clock, server
        server.controllers.append(self._changed)

    def collects(self, obj: Object) -> None:
        """The world's: `obj` is about to be deleted."""

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if what == "GONE":
            uid = obj["metadata"]["uid"]
            for other in [o for o in self._server.objects.values() if owner_uid(o) == uid]:
                self._collect_soon(other)
        elif (uid := owner_uid(obj)) and not self._exists(uid):
            # What is made or adopted just now for an owner that has gone meanwhile.
            self._collect_soon(obj)

    def _exists(self, uid: str) -> bool:
        return any(obj["metadata"]["uid"] == uid for obj in self._server.objects.values())

    def _collect_soon(self, obj: Object) -> None:
        self._clock.after(self._clock.between(0.1, COLLECTED_WITHIN), self._collect, obj)

    def _collect(self, obj: Object) -> None:
        """It asks the API server before it deletes: what has another owner by now stays."""
        kind, meta = obj["kind"], obj["metadata"]
        live = self._server.find(kind, meta["name"])
        same = live is not None and live["metadata"]["uid"] == meta["uid"]
        if live is not None and same and owner_uid(live) == owner_uid(obj):
            self.collects(live)
            self._server.delete("garbage", kind, meta["name"], meta["uid"], None)
