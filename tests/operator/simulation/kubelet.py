"""A model of scheduler, kubelets and the node controller: the lives of engine pods."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from pds_operator import names
from simulation.clock import Clock
from simulation.server import ApiServer, written

Object = dict[str, Any]
Group = tuple[str, int, int]
"""(role, index, attempt)."""
GRACE_OF_THE_LOST = 20.0


@dataclass(slots=True)
class Node:
    name: str
    slots: int
    alive: bool = True
    used: int = 0
    ahead: float = 0.0
    """Seconds that its clock is ahead of the API server's."""


@dataclass(slots=True, eq=False)
class Running:
    """One engine pod as it is, whatever the API server knows of it."""

    name: str
    uid: str
    group: Group
    size: int
    rank: int
    revision: str
    fingerprint: str
    secrets: frozenset[str]
    """That it mounts."""
    nature: str
    """What its image does: "good", "exit78", "crash", "warmup" (fails), "never" (gets ready),
    "pull" (is nowhere), "mismatch" (prefill and decode see two models)."""
    made: float = 0.0
    """When the API server was asked for it."""
    node: Node | None = None
    ip: str = ""
    key: bytes = b""
    """The control key that it has read."""
    warm: str = ""
    """The manifest that its warm-up proved."""
    loaded: bool = False
    ready: bool = False
    stopping: bool = False
    ended: bool = False
    gated: bool = False
    """Ready as the kubelet last worked it out."""
    served: bool = False
    """It was routed to once."""
    in_flight: int = 0
    draining: bool = False
    deadline: float = 0.0
    """When an engine that was asked to drain ends what is left."""
    harmed: bool = False
    """Something else than the operator ended it, or a pod of its group."""


class Kubelet:
    """All nodes of the cluster."""

    def __init__(self, clock: Clock, server: ApiServer, nodes: list[Node]) -> None:
        self._clock, self._server = clock, server
        self.nodes = nodes
        self.pods: dict[str, Running] = {}
        """By uid: everything that exists, or is still running."""
        self.compiled: set[str] = set()
        """Revisions whose kernels are in the cache volume."""
        self.faulty: set[str] = set()
        """Revisions of which a pod ended by a fault of its own."""
        self._waiting: list[Running] = []
        self._addresses = 0
        server.controllers.append(self._changed)

    def of(self, group: Group) -> list[Running]:
        return [pod for pod in self.pods.values() if pod.group == group]

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if obj["kind"] != "Pod" or names.RANK_POD not in (obj["metadata"].get("labels") or {}):
            return
        meta = obj["metadata"]
        pod = self.pods.get(meta["uid"])
        if what == "GONE":
            if pod is not None:
                self._end(pod)
                self.pods.pop(pod.uid, None)
        elif pod is None:
            if before is None and names.ATTEMPT in meta["labels"] and not obj.get("status"):
                self._admit(obj)
        elif meta.get("deletionTimestamp") and not pod.stopping:
            self._stop(pod, meta["until"] - self._clock.now)
        elif meta.get("deletionTimestamp") and before is not None:
            if before["metadata"].get("until") != meta["until"]:
                self._clock.after(meta["until"] - self._clock.now, self._bury, pod)
        elif pod.ready and gate(obj) != pod.gated:
            self._clock.after(self._clock.between(0.05, 0.5), self._work_out_ready, pod)

    def _admit(self, obj: Object) -> None:
        meta, labels = obj["metadata"], obj["metadata"]["labels"]
        place = (labels[names.ROLE], int(labels[names.GROUP_INDEX]), int(labels[names.ATTEMPT]))
        image = obj["spec"]["containers"][0]["image"]
        pod = Running(
            name=meta["name"],
            uid=meta["uid"],
            group=place,
            size=2 if "pair" in image and place[0] == "prefill" else 1,
            rank=int(labels[names.RANK_POD]),
            revision=labels[names.REVISION],
            fingerprint=labels[names.KV],
            secrets=frozenset(
                volume["secret"]["secretName"]
                for volume in obj["spec"]["volumes"]
                if "secret" in volume
            ),
            nature=image.rpartition("-")[2],
            made=self._clock.now,
        )
        if pod.nature == "mismatch":
            pod.fingerprint += place[0]
        self.pods[pod.uid] = pod
        self._clock.after(self._clock.between(0.05, 0.4), self._schedule, pod)

    def _schedule(self, pod: Running) -> None:
        live = self._live(pod)
        if live is None or pod.ended or pod.node is not None:
            return
        free = self._free()
        if not free:
            self._waiting.append(pod)
            self._show(pod)
            return
        pod.node = min(free, key=lambda node: (node.used, node.name))
        pod.node.used += 1
        self._show(pod)
        self._mount(pod)

    def _free(self) -> list[Node]:
        return [node for node in self.nodes if node.alive and node.used < node.slots]

    def has_room(self) -> bool:
        """Whether a pod of a Job finds a node now: it is gone before it would crowd others."""
        return bool(self._free())

    def _mount(self, pod: Running) -> None:
        """Its containers start when what it mounts is there, and their image."""
        if pod.ended or pod.stopping or pod.nature == "pull":
            return
        found = {name: self._server.find("Secret", name) for name in pod.secrets}
        if not all(found.values()):
            self._clock.after(self._clock.between(0.5, 2.0), self._mount, pod)
            return
        for secret in found.values():
            if secret is not None and "hmac.key" in secret["data"]:
                pod.key = bytes.fromhex(base64.b64decode(secret["data"]["hmac.key"]).decode())
        slow = 4.0 if pod.revision not in self.compiled else 1.0
        self._clock.after(self._clock.between(0.5, 1.0) * slow, self._warmed, pod)

    def _warmed(self, pod: Running) -> None:
        if pod.ended or pod.stopping:
            return
        if pod.nature == "warmup":
            self.fail(pod, 1, warmup=True)
            return
        self.compiled.add(pod.revision)
        self._addresses += 1
        pod.warm, pod.ip = (
            f"m-{pod.revision}",
            f"10.0.{self._addresses >> 8}.{self._addresses & 255}",
        )
        self._show(pod)
        self._clock.after(self._clock.between(0.5, 3.0), self._load, pod)

    def _load(self, pod: Running) -> None:
        if pod.ended or pod.stopping:
            return
        if pod.nature in ("exit78", "crash"):
            self.fail(pod, 78 if pod.nature == "exit78" else 1)
            return
        pod.loaded = True
        self._show(pod)
        group = self.of(pod.group)
        whole = len(group) == pod.size and all(p.loaded and not p.ended for p in group)
        if whole and pod.nature != "never":
            for each in group:
                each.ready = True
                self._work_out_ready(each)

    def _work_out_ready(self, pod: Running) -> None:
        live = self._live(pod)
        if live is None or pod.ended or pod.node is None or not pod.node.alive:
            return
        pod.gated = gate(live)
        pod.served = pod.served or pod.gated
        self._show(pod)

    def fail(
        self,
        pod: Running,
        code: int,
        *,
        warmup: bool = False,
        reason: str = "",
        sidecar: bool = False,
    ) -> None:
        """Its container ends by itself; the kubelet says so.

        reason: the kubelet ended it, for this. sidecar: the pod goes on.
        """
        if pod.ended:
            return
        if not reason:
            self.faulty.add(pod.revision)
        if pod.loaded or not warmup:
            self.harm(pod)
        self._end(pod)
        live = self._live(pod)
        if live is None:
            return
        self.failed(pod)
        ended = {"exitCode": code, "finishedAt": self._text(pod), "message": "it failed"}
        container = {"name": "warmup" if warmup else "engine", "state": {"terminated": ended}}
        status = {**self._status(pod, live), "phase": "Running" if sidecar else "Failed"}
        status["initContainerStatuses" if warmup else "containerStatuses"] = [container]
        if reason:
            status["reason"] = reason
        self._write(live, status)

    def harm(self, pod: Running) -> None:
        """A rank that is lost takes its whole group along."""
        for each in self.of(pod.group):
            each.harmed = True
            each.ready = False
            each.in_flight = 0
            if each is not pod and not each.ended and not each.stopping:
                self._clock.after(self._clock.between(0.5, 2.0), self.fail, each, 1)

    def lose(self, node: Node) -> None:
        """A node vanishes: nothing on it answers; the control plane notices later."""
        node.alive = False
        lost = [pod for pod in self.pods.values() if pod.node is node]
        for pod in lost:
            self.harm(pod)
            self._end(pod)
            self._clock.after(self._clock.between(2.0, 4.0), self._not_ready, pod)
            self._clock.after(self._clock.between(6.0, 9.0), self._evict, pod)
        self._clock.after(GRACE_OF_THE_LOST, self._collect, lost)

    def heal(self, node: Node) -> None:
        """A node of that name joins, empty."""
        if not node.alive:
            node.alive, node.used = True, 0
            self._retry()

    def _not_ready(self, pod: Running) -> None:
        live = self._live(pod)
        if live is not None:
            pod.gated = False
            self._write(live, self._status(pod, live))

    def _evict(self, pod: Running) -> None:
        live = self._live(pod)
        if live is not None:
            self._server.delete("nodes", "Pod", pod.name, pod.uid, None)

    def _collect(self, lost: list[Running]) -> None:
        for pod in lost:
            live = self._live(pod)
            if live is not None:
                self._server.remove(live)

    def _stop(self, pod: Running, grace: float) -> None:
        """SIGTERM: a drain, for as long as the grace lasts."""
        pod.stopping = True
        if pod.node is None or not pod.node.alive:
            return
        pod.draining = True
        if not pod.ready:
            grace = min(grace, self._clock.between(0.2, 1.0))
        self._clock.after(grace, self._bury, pod)
        self.settle(pod)

    def settle(self, pod: Running) -> None:
        """One that stops is over when its last request is."""
        if pod.stopping and not pod.in_flight:
            self._clock.after(self._clock.between(0.1, 0.5), self._bury, pod)

    def _bury(self, pod: Running) -> None:
        if pod.node is not None and not pod.node.alive:
            return
        live = self._live(pod)
        if live is not None:
            self._server.remove(live)

    def _end(self, pod: Running) -> None:
        if pod.ended:
            return
        pod.ended, pod.ready = True, False
        self.over(pod)
        if pod.node is not None and pod.node.alive:
            pod.node.used -= 1
        self._retry()

    def over(self, pod: Running) -> None:
        """Called before a process ends with what it has; the judge's."""

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, []
        for pod in waiting:
            self._clock.after(self._clock.between(0.05, 0.4), self._schedule, pod)

    def _live(self, pod: Running) -> Object | None:
        live = self._server.find("Pod", pod.name)
        return live if live is not None and live["metadata"]["uid"] == pod.uid else None

    def _show(self, pod: Running) -> None:
        live = self._live(pod)
        if live is not None:
            spec = {**live["spec"], "nodeName": pod.node.name} if pod.node else live["spec"]
            self._write({**live, "spec": spec}, self._status(pod, live))

    def failed(self, pod: Running) -> None:
        """Called before the API server hears of it; the judge's."""

    def _text(self, pod: Running) -> str:
        """Now, as the node of `pod` writes it."""
        return self._clock.text(pod.node.ahead if pod.node is not None else 0.0)

    def _write(self, live: Object, status: Object) -> None:
        """The API server notes by its own clock who wrote a status, and when."""
        managed = written(live["metadata"], "kubelet", self._clock.text())
        meta = {**live["metadata"], "managedFields": managed}
        self._server.put({**live, "metadata": meta, "status": status})

    def _status(self, pod: Running, live: Object) -> Object:
        old = live.get("status") or {}
        before = {item["type"]: item for item in old.get("conditions", [])}
        states: dict[str, bool] = {"PodScheduled": pod.node is not None}
        if pod.ip:
            states["ContainersReady"] = pod.ready
            states["Ready"] = pod.ready and (pod.rank != 0 or pod.gated)
        conditions = [before[names.ROUTABLE]] if names.ROUTABLE in before else []
        for kind, state in states.items():
            known = before.get(kind)
            text = "True" if state else "False"
            if known is None or known["status"] != text:
                known = {"type": kind, "status": text, "lastTransitionTime": self._text(pod)}
                if kind == "PodScheduled" and not state:
                    known["message"] = "0/3 nodes are available"
            conditions.append(known)
        status: Object = {"phase": "Running" if pod.ip else "Pending", "conditions": conditions}
        if pod.nature == "pull" and pod.node is not None:
            waits = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
            status["containerStatuses"] = [{"name": "engine", "state": {"waiting": waits}}]
        if pod.warm:
            proof = json.dumps({"manifest": pod.warm, "compiled": 1})
            done = {"name": "warmup", "state": {"terminated": {"exitCode": 0, "message": proof}}}
            status["initContainerStatuses"] = [done]
            status["podIP"] = pod.ip
            status["containerStatuses"] = [{"name": "engine", "started": pod.loaded}]
        return status


def gate(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions", [])
    return any(c["type"] == names.ROUTABLE and c["status"] == "True" for c in conditions)
