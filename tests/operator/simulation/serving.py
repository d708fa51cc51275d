"""Models of engines, routers and the Deployment that keeps routers: who serves a request."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pds_engine.router.keyring import Keyring, Ring
from pds_engine.router.policy import Ask, Candidate, pick
from pds_engine.signing import key_id
from pds_operator import names
from pds_operator.facts.observed import LeaderState, RouterView
from pds_operator.facts.reading import owner_uid
from simulation.clock import Clock
from simulation.kubelet import Kubelet, Running
from simulation.server import ApiServer

Object = dict[str, Any]
ENDED = ("Failed", "Succeeded")
RING = "chat-keyring"


@dataclass(slots=True, eq=False)
class SimulatedRouter:
    """A router pod: what it knows of pods comes by a watch that lags, and by asking engines."""

    name: str
    uid: str
    template: str
    ip: str
    engines: Mapping[str, Running]
    """By uid: what engines say of themselves when they are asked."""
    ready: bool = False
    known: dict[str, Object] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    """Uids of leaders that said so, or do not answer."""
    heard_at: float = 0.0
    turn: int = 0
    keys: Keyring = field(default_factory=Keyring)
    """That it has read of the ring."""
    choices: dict[str, tuple[str, bool]] | None = None

    def backends(self) -> dict[str, tuple[str, bool]]:
        """By leader pod: (uid, whether it would be chosen), as /pds/backends has it."""
        if self.choices is None:
            groups: dict[tuple[str, ...], list[Object]] = {}
            for obj in self.known.values():
                labels = obj["metadata"]["labels"]
                place = (labels[names.ROLE], labels[names.GROUP_INDEX], labels[names.ATTEMPT])
                groups.setdefault(place, []).append(obj)
            self.choices = {}
            for pods in groups.values():
                for pod in pods:
                    if pod["metadata"]["labels"][names.RANK_POD] == "0" and _ip(pod):
                        uid = pod["metadata"]["uid"]
                        good = uid not in self.draining and _containers_ready(pod)
                        good = good and not any(map(_leaves, pods)) and self.holds(uid)
                        self.choices[pod["metadata"]["name"]] = (uid, good)
        return self.choices

    def holds(self, uid: str) -> bool:
        """It has the key by which the engine is asked."""
        engine = self.engines.get(uid)
        return engine is not None and self.keys.of(key_id(engine.key)) == engine.key

    def read(self, ring: Object) -> None:
        """The folder of keys is as the ring was."""
        text = {n: base64.b64decode(t).decode() for n, t in ring["data"].items()}
        keys = {name: bytes.fromhex(value) for name, value in text.items()}
        default = key_id(keys["hmac.key"])
        known = [self.engines[uid] for uid in self.known if uid in self.engines]
        used = {key_id(engine.key) for engine in known}
        self.keys.take(Ring({key_id(key): key for key in keys.values()}, default), used)
        self.choices = None


def _controller(obj: Object) -> Object:
    meta = obj["metadata"]
    what = {"apiVersion": "apps/v1", "kind": obj["kind"], "name": meta["name"]}
    return {**what, "uid": meta["uid"], "controller": True}


def _ip(pod: Object) -> str:
    return str((pod.get("status") or {}).get("podIP", ""))


def _containers_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions", [])
    return any(c["type"] == "ContainersReady" and c["status"] == "True" for c in conditions)


def _selected(pod: Object | None) -> bool:
    return pod is not None and names.NAME in pod["metadata"]["labels"]


def _leaves(pod: Object) -> bool:
    meta = pod["metadata"]
    return bool(
        meta.get("deletionTimestamp")
        or meta["labels"].get(names.DRAINING)
        or (pod.get("status") or {}).get("phase") in ENDED
    )


class SimulatedServing:
    """Routers, engines' HTTP, and clients."""

    def __init__(self, clock: Clock, server: ApiServer, kubelet: Kubelet) -> None:
        self._clock, self._server, self._kubelet = clock, server, kubelet
        self.routers: dict[str, SimulatedRouter] = {}
        self.open = True
        """Clients go on sending requests."""
        self.served = self.refused = 0
        self._made = 0
        server.controllers.append(self._changed)

    # Routers ------------------------------------------------------------------------------

    def _changed(self, what: str, obj: Object, before: Object | None) -> None:
        if obj["kind"] == "Deployment":
            self._clock.after(self._clock.between(0.1, 0.4), self._keep_up)
        elif obj["kind"] == "Secret" and obj["metadata"]["name"] == RING and what == "PUT":
            for router in self.routers.values():
                self._clock.after(self._clock.between(1.0, 8.0), self._read, router)
        elif obj["kind"] == "Pod":
            labels = obj["metadata"].get("labels") or {}
            if names.ATTEMPT in labels and names.RANK_POD in labels:
                seen = names.NAME in labels
                for router in self.routers.values() if seen or _selected(before) else ():
                    self._tell(router, what if seen else "GONE", obj)
            elif what == "GONE" and obj["metadata"]["uid"] in self.routers:
                self.routers.pop(obj["metadata"]["uid"])
                self._clock.after(self._clock.between(0.1, 0.4), self._keep_up)

    def _read(self, router: SimulatedRouter) -> None:
        """The kubelet brings in what the ring holds by now; nothing, where it is gone."""
        ring = self._server.find("Secret", RING)
        if ring is not None:
            router.read(ring)

    def _tell(self, router: SimulatedRouter, what: str, obj: Object) -> None:
        lag = self._clock.between(0.01, 0.3) if self._clock.chance(0.9) else 2.0
        router.heard_at = max(router.heard_at, self._clock.now + lag)
        self._clock.after(router.heard_at - self._clock.now, self._hear, router, what, obj)

    def _hear(self, router: SimulatedRouter, what: str, obj: Object) -> None:
        if what == "GONE":
            router.known.pop(obj["metadata"]["uid"], None)
        else:
            router.known[obj["metadata"]["uid"]] = obj
        router.choices = None

    def _keep_up(self) -> None:
        """The Deployment's controller: one more at a time, none less."""
        live = next(iter(self._server.all("Deployment")), None)
        if live is None:
            return
        template = str(live["spec"]["template"])
        wanted = live["spec"].get("replicas", 1)
        own = list(self.routers.values())
        new = [router for router in own if router.template == template]
        if len(new) < wanted and len(own) <= wanted:
            self._start(live, template)
        elif len(own) > wanted and all(router.ready for router in new):
            old = [router for router in own if router.template != template]
            self.end((old or new)[0])
        own = list(self.routers.values())
        status = {
            "observedGeneration": live["metadata"]["generation"],
            "replicas": len(own),
            "updatedReplicas": sum(router.template == template for router in own),
            "readyReplicas": sum(router.ready for router in own),
        }
        if status != live.get("status"):
            self._server.put({**live, "status": status})

    def _start(self, live: Object, template: str) -> None:
        self._made += 1
        name = f"{live['metadata']['name']}-{self._made}"
        labels = live["spec"]["template"]["metadata"]["labels"]
        meta = {"name": name, "labels": labels}
        meta["ownerReferences"] = [_controller(self._set_of(live, template))]
        obj = self._server.put({"kind": "Pod", "metadata": meta, "status": {}})
        uid = obj["metadata"]["uid"]
        router = SimulatedRouter(name, uid, template, f"10.1.0.{self._made}", self._kubelet.pods)
        self.routers[uid] = router
        for pod in self._server.all("Pod"):
            if names.ATTEMPT in pod["metadata"]["labels"] and _selected(pod):
                self._hear(router, "PUT", pod)
        for engine in self._kubelet.pods.values():
            self._learn(router, engine)
        self._clock.after(self._clock.between(0.3, 1.5), self._ready, router)

    def _set_of(self, live: Object, template: str) -> Object:
        """The ReplicaSet of one template of the Deployment `live`."""
        digest = hashlib.sha256(template.encode()).hexdigest()[:8]
        name = f"{live['metadata']['name']}-{digest}"
        found = self._server.find("ReplicaSet", name)
        if found is not None and owner_uid(found) == live["metadata"]["uid"]:
            return found
        meta: Object = {"name": name, "labels": live["spec"]["template"]["metadata"]["labels"]}
        meta["ownerReferences"] = [_controller(live)]
        return self._server.put({"kind": "ReplicaSet", "metadata": meta, "spec": {}})

    def wear_our_labels(self) -> None:
        """Somebody makes a pod with a router's labels, which says that nothing is routable."""
        self._made += 1
        labels = names.common_labels("chat", "router")
        meta = {"name": f"stranger-{self._made}", "labels": labels}
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"podIP": f"10.6.0.{self._made}", "conditions": conditions}
        self._server.put({"kind": "Pod", "metadata": meta, "status": status})
        self._clock.note(f"{meta['name']} wears the labels of a router")

    def _ready(self, router: SimulatedRouter) -> None:
        live = self._server.find("Pod", router.name)
        self._read(router)
        if not router.keys and live is not None:
            self._clock.after(self._clock.between(0.5, 2.0), self._ready, router)
            return
        if live is not None:
            router.ready = True
            conditions = [{"type": "Ready", "status": "True"}]
            self._server.put({**live, "status": {"podIP": router.ip, "conditions": conditions}})
            self._clock.after(self._clock.between(0.1, 0.4), self._keep_up)

    def end(self, router: SimulatedRouter) -> None:
        """A router pod is deleted, by its controller or by somebody."""
        live = self._server.find("Pod", router.name)
        if live is not None:
            self._server.remove(live)

    # Engines ------------------------------------------------------------------------------

    def leader_at(self, ip: str) -> Running | None:
        return next((p for p in self._kubelet.pods.values() if p.ip == ip and not p.ended), None)

    def states(self, leaders: list[tuple[str, str]]) -> dict[str, LeaderState]:
        """What the leaders that can be reached answer."""
        answers = {}
        for name, ip in leaders:
            pod = self.leader_at(ip)
            if pod is not None and pod.loaded:
                answers[name] = LeaderState(
                    in_flight=pod.in_flight,
                    draining=pod.draining,
                    manifest=pod.warm,
                    fingerprint=pod.fingerprint if pod.ready else "",
                )
        return answers

    def views(self, routers: list[tuple[str, str]]) -> list[RouterView]:
        """What the routers that can be reached answer."""
        by_name = {router.name: router for router in self.routers.values() if router.ready}
        leaders = [pod.name for pod in self._kubelet.pods.values() if pod.rank == 0]
        strangers = [
            RouterView(name, dict.fromkeys(leaders, False))
            for name, _ in routers
            if name.startswith("stranger")
        ]
        return strangers + [
            RouterView(
                name,
                {pod: good for pod, (_, good) in by_name[name].backends().items()},
                uids={pod: uid for pod, (uid, _) in by_name[name].backends().items()},
            )
            for name, _ in routers
            if name in by_name
        ]

    def drain(self, ip: str, seconds: int, key: bytes) -> str:
        """POST /pds/drain: what is left at the deadline ends."""
        pod = self.leader_at(ip)
        if pod is None:
            return "no route to host"
        if key != pod.key:
            return "HTTP 403"
        if not pod.draining:
            pod.draining, pod.deadline = True, self._clock.now + seconds
            self._clock.after(seconds, self._end_what_is_left, pod)
            self.spread(pod)
        return ""

    def spread(self, pod: Running) -> None:
        """Routers learn by asking that an engine takes nothing more, or is gone."""
        for router in self.routers.values():
            self._clock.after(self._clock.between(0.1, 1.2), self._learn, router, pod)

    def _learn(self, router: SimulatedRouter, pod: Running) -> None:
        if pod.draining or pod.ended or pod.harmed:
            router.draining.add(pod.uid)
            router.choices = None

    def _end_what_is_left(self, pod: Running) -> None:
        pod.in_flight = 0
        self._kubelet.settle(pod)

    # Clients ------------------------------------------------------------------------------

    def request(self) -> None:
        """One request from a client, and when the next one comes."""
        if self.open:
            self._clock.after(self._clock.random.expovariate(0.7), self.request)
        ready = [router for router in self.routers.values() if router.ready]
        if not ready:
            return
        router = ready[self._clock.random.randrange(len(ready))]
        router.turn += 1
        left_out: set[str] = set()
        while chosen := pick(self._candidates(router, left_out), Ask("leastTokens", router.turn)):
            uids = [chosen.prefill, *([chosen.decode] if chosen.decode else [])]
            pods = [self._kubelet.pods.get(uid) for uid in uids]
            silent = [
                uid
                for uid, pod in zip(uids, pods, strict=True)
                if pod is None or pod.ended or pod.draining or not pod.ready
            ]
            if not silent:
                self._run([pod for pod in pods if pod is not None])
                return
            left_out.update(silent)  # refused before it began: tried elsewhere
        self.refused += 1
        self.unserved(router)

    def _candidates(self, router: SimulatedRouter, left_out: set[str]) -> list[Candidate]:
        found = []
        for uid, good in router.backends().values():
            pod = self._kubelet.pods.get(uid)
            if good and pod is not None and uid not in left_out:
                key = key_id(pod.key)
                found.append(
                    Candidate(uid, pod.group[0], pod.fingerprint, pod.in_flight, key_id=key)
                )
        return found

    def _run(self, pods: list[Running]) -> None:
        self.served += 1
        self.chosen(pods)
        long = self._clock.chance(0.05)
        for pod in pods:
            pod.in_flight += 1
            lasts = self._clock.between(0.5, 6.0) if pod is pods[-1] else 0.5
            self._clock.after(60.0 if long and pod is pods[-1] else lasts, self._done, pod)

    def _done(self, pod: Running) -> None:
        if pod.in_flight:
            pod.in_flight -= 1
            self._kubelet.settle(pod)

    def chosen(self, pods: list[Running]) -> None:
        """The judge's: a request starts on these groups."""

    def unserved(self, router: SimulatedRouter) -> None:
        """The judge's: a request found no group."""
