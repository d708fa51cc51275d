"""A model of the endpoint controller: an EndpointSlice lists what a Service selects."""

from typing import Any

from pds_operator import names
from simulation.clock import Clock
from simulation.server import ApiServer

Object = dict[str, Any]


class Endpoints:
    """The slice of the endpoint's Service: the ready routers that it selects."""

    def __init__(self, clock: Clock, server: ApiServer, service: str) -> None:
        self._clock, self._server, self._service = clock, server, service
        self._due = False
        server.controllers.append(self._changed)

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        kind, labels = obj["kind"], obj["metadata"].get("labels") or {}
        ours = kind == "Service" and obj["metadata"]["name"] == self._service
        if not self._due and (ours or (kind == "Pod" and names.ATTEMPT not in labels)):
            self._due = True
            self._clock.after(self._clock.between(0.1, 0.4), self._keep_up)

    def _keep_up(self) -> None:
        self._due = False
        name = f"{self._service}-slice"
        live, service = (
            self._server.find("EndpointSlice", name),
            self._server.find("Service", self._service),
        )
        if service is None:
            if live is not None:
                self._server.remove(live)
            return
        selector = (service["spec"].get("selector") or {}).items()
        ready = [
            {"conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": name}}
            for name, labels in self._ready()
            if selector and selector <= labels.items()
        ]
        meta = service["metadata"]
        owner = {"apiVersion": "v1", "kind": "Service", "name": self._service, "uid": meta["uid"]}
        labels = {**(meta.get("labels") or {}), names.SERVICE_NAME: self._service}
        wanted = {"labels": labels, "ownerReferences": [{**owner, "controller": True}]}
        known = live["metadata"] if live is not None else {"name": name}
        if (
            live is None
            or live["endpoints"] != ready
            or {key: known.get(key) for key in wanted} != wanted
        ):
            made = {"kind": "EndpointSlice", "metadata": {**known, **wanted}, "endpoints": ready}
            self._server.put(made)

    def _ready(self) -> list[tuple[str, Object]]:
        return [
            (pod["metadata"]["name"], pod["metadata"].get("labels") or {})
            for pod in self._server.all("Pod")
            if names.ATTEMPT not in (pod["metadata"].get("labels") or {})
            and {"type": "Ready", "status": "True"} in (pod["status"].get("conditions") or [])
        ]
