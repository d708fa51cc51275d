"""A model of the Job controller: the warm-up of a revision before its first pod."""

from typing import Any

from pds_operator import names
from simulation.clock import Clock
from simulation.kubelet import Kubelet
from simulation.server import ApiServer

Object = dict[str, Any]


class Jobs:
    """Every Job has one pod, which ends as the revision's image does."""

    def __init__(self, clock: Clock, server: ApiServer, kubelet: Kubelet) -> None:
        self._clock, self._server, self._kubelet = clock, server, kubelet
        server.controllers.append(self._changed)

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if obj["kind"] != "Job":
            return
        if what == "PUT" and before is None:
            self._clock.after(self._clock.between(0.1, 0.4), self._begin, obj)
        elif what == "GONE":
            pod = self._server.find("Pod", _pod(obj))
            if pod is not None:
                self._server.remove(pod)

    def _begin(self, job: Object) -> None:
        if self._live(job) is None:
            return
        meta = {"name": _pod(job), "labels": job["spec"]["template"]["metadata"]["labels"]}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"]}
        meta["ownerReferences"] = [{**owner, "uid": job["metadata"]["uid"], "controller": True}]
        status = {"conditions": [{"type": "PodScheduled", "status": "True"}]}
        self._server.put({"kind": "Pod", "metadata": meta, "status": status})
        self._clock.after(self._clock.between(1.0, 4.0), self._end, job)

    def _end(self, job: Object) -> None:
        live = self._live(job)
        if live is None:
            return
        image = live["spec"]["template"]["spec"]["containers"][0]["image"]
        good = not image.endswith("-warmup")
        if good:
            self._kubelet.compiled.add(live["metadata"]["labels"][names.REVISION])
        condition = {
            "type": "Complete" if good else "Failed",
            "status": "True",
            "lastTransitionTime": self._clock.text(),
        }
        self._server.put({**live, "status": {"conditions": [condition]}})

    def _live(self, job: Object) -> Object | None:
        live = self._server.find("Job", job["metadata"]["name"])
        same = live is not None and live["metadata"]["uid"] == job["metadata"]["uid"]
        return live if same else None


def _pod(job: Object) -> str:
    return f"{job['metadata']['name']}-{job['metadata']['uid']}"
