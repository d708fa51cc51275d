"""A model of the Job controller: the warm-up of a revision before its first pod."""

from typing import Any

from pds_operator import errors, names
from simulation.clock import Clock
from simulation.kubelet import Kubelet
from simulation.server import ApiServer

Object = dict[str, Any]
LONGEST_WAIT = 360.0


class Jobs:
    """Every Job has one pod, which ends as the revision's image does.

    A quota may refuse the pod, which is then asked for again, each time later. It waits while no
    node has room.
    """

    def __init__(self, clock: Clock, server: ApiServer, kubelet: Kubelet) -> None:
        self._clock, self._server, self._kubelet = clock, server, kubelet
        server.controllers.append(self._changed)

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if obj["kind"] != "Job":
            return
        if what == "PUT" and before is None:
            self._clock.after(self._clock.between(0.1, 0.4), self._begin, obj, 10.0)
        elif what == "GONE":
            pod = self._server.find("Pod", _pod(obj))
            if pod is not None:
                self._server.remove(pod)

    def _begin(self, job: Object, wait: float) -> None:
        if self._live(job) is None:
            return
        try:
            self._server.admit("Pod")
        except errors.AdmissionDenied:
            self._clock.after(wait, self._begin, job, min(2 * wait, LONGEST_WAIT))
            return
        meta = {"name": _pod(job), "labels": job["spec"]["template"]["metadata"]["labels"]}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"]}
        meta["ownerReferences"] = [{**owner, "uid": job["metadata"]["uid"], "controller": True}]
        self._schedule(job, self._server.put({"kind": "Pod", "metadata": meta, "status": {}}))

    def _schedule(self, job: Object, pod: Object) -> None:
        if self._live(job) is None:
            return
        room = self._kubelet.has_room()
        said = {} if room else {"message": "0/4 nodes are available"}
        condition = {"type": "PodScheduled", "status": "True" if room else "False", **said}
        if pod["status"].get("conditions") != [condition]:
            pod = self._server.put({**pod, "status": {"conditions": [condition]}})
        if room:
            self._clock.after(self._clock.between(1.0, 4.0), self._end, job)
        else:
            self._clock.after(self._clock.between(1.0, 4.0), self._schedule, job, pod)

    def _end(self, job: Object) -> None:
        live = self._live(job)
        if live is None:
            return
        image = live["spec"]["template"]["spec"]["containers"][0]["image"]
        good = not image.endswith("-warmup")
        labels = live["metadata"]["labels"]
        if good and names.TARGET not in labels:
            self._kubelet.compiled.add(labels[names.REVISION])
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
