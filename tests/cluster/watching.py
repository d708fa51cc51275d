"""All that happens to a PDServing while a test runs, as three witnesses report it.

The API server's watch has each change of it and of its pods, the routers' debug logs say which
pods each request went to, and every engine is asked for its `/pds/state` twice a second.
"""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVarTuple

from serving import Object, Serving, is_settled

ROLES = ("prefill", "decode")
ATTEMPT = "an attempt begins"
"""What a router logs, at debug, when it sends a request to a pair."""
DEBUG = {
    "spec": {
        "containers": [{"name": "router", "env": [{"name": "PDS_LOG_LEVEL", "value": "debug"}]}]
    }
}
"""spec.router.podTemplate of routers that log it."""

Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True)
class LoggedAttempt:
    """A request, sent to a pair."""

    at: float
    """Unix seconds."""
    request_id: str
    prefill: str
    """The UID of its leader: a name may come again."""
    decode: str


@dataclass(frozen=True)
class GroupCounts:
    """A role's groups, after one event of the watch."""

    role: str
    ready: int
    """By their leader's condition, which includes the gate; neither draining nor being deleted."""
    pods: int
    """Not being deleted."""


@dataclass
class Watch:
    """What has been seen so far."""

    serving: Serving
    pods: dict[str, Object] = field(default_factory=dict)
    """Each pod as it was last, by UID."""
    ready_at: dict[str, float] = field(default_factory=dict)
    """When a pod's containers were ready for the first time, in Unix seconds, by UID."""
    counts: list[GroupCounts] = field(default_factory=list)
    states: dict[str, Object] = field(default_factory=dict)
    """The last `/pds/state` of each pod that was ready, by UID."""
    logs: list[str] = field(default_factory=list)
    own: Object = field(default_factory=dict)
    """The PDServing as it was last."""
    began: float = field(default_factory=time.time)
    _alive: dict[str, Object] = field(default_factory=dict)
    _followed: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def settled(self, timeout: float) -> None:
        """As Serving.settled, without asking again and again: two busy cores would feel it."""
        newest = self.serving.get()["metadata"]["generation"]

        def done() -> bool:
            fresh = self.own and self.own["metadata"]["generation"] >= newest
            return bool(fresh) and is_settled(self.own)

        self.serving.until("Ready and at rest", done, timeout)

    # ---- what it comes to ------------------------------------------------------------------------

    def events(self, role: str) -> list[GroupCounts]:
        """A role's groups after each event of the watch, but for the one that it begins with."""
        return [counts for counts in self.counts if counts.role == role][1:]

    def attempts(self) -> list[LoggedAttempt]:
        """Every attempt of every router since the watch began, in order."""
        found = []
        for entry in [json.loads(line) for line in list(self.logs) if ATTEMPT in line]:
            at = _unix(entry["time"])
            if at >= self.began:
                both = (self._uid(entry[role], at) for role in ROLES)
                found.append(LoggedAttempt(at, entry["request_id"], *both))
        return sorted(found, key=lambda attempt: attempt.at)

    def _uid(self, name: str, at: float) -> str:
        """Of the pod that has or had that name at that time."""
        metas = [pod["metadata"] for pod in self.pods.values()]
        made = {
            _unix(meta["creationTimestamp"]): str(meta["uid"])
            for meta in metas
            if meta["name"] == name
        }
        return made[max(moment for moment in made if moment <= at)]

    def kv(self, pod: str) -> str:
        """The fingerprint that an engine reported itself."""
        return str(self.states[pod]["kv_fingerprint"])

    def revision(self, pod: str) -> str:
        return str(self.pods[pod]["metadata"]["labels"]["pdserving.io/revision"])

    def pairs(self) -> Counter[tuple[str, str]]:
        """Attempts by the KV fingerprints of their prefill and decode group."""
        return Counter((self.kv(each.prefill), self.kv(each.decode)) for each in self.attempts())

    def mixed(self) -> list[LoggedAttempt]:
        """Attempts at a pair of unlike KV."""
        return [each for each in self.attempts() if self.kv(each.prefill) != self.kv(each.decode)]

    def early(self) -> list[LoggedAttempt]:
        """Attempts at a pod before its containers were ready, which needs its warm-up's end."""
        never = float("inf")
        return [
            each
            for each in self.attempts()
            if any(each.at < self.ready_at.get(pod, never) for pod in (each.prefill, each.decode))
        ]

    def unproven(self) -> dict[str, Object]:
        """The kernels of engines that run what no warm-up proved, or compiled something."""
        reported = {pod: state["kernels"] for pod, state in self.states.items()}
        return {
            pod: kernels
            for pod, kernels in reported.items()
            if not is_warm(kernels, self.proof(pod))
        }

    def proof(self, pod: str) -> Object:
        """What the warm-up of that pod wrote to its termination message; empty without one."""
        for container in self.pods[pod]["status"].get("initContainerStatuses", []):
            if ended := container["state"].get("terminated"):
                note: Object = json.loads(ended["message"])
                return note
        return {}

    # ---- how it is seen --------------------------------------------------------------------------

    def follow(self) -> None:
        """Begin; every pod that is there already comes as an event."""
        options = ("--watch", "--output-watch-events", "-o", "json")
        own = ("get", "pds", "--field-selector", f"metadata.name={self.serving.name}")
        pods = ("get", "pods", "-l", f"pdserving.io/name={self.serving.name}")
        self._thread(self._itself, (*own, *options))
        self._thread(self._changes, self._kubectl(*pods, *options))
        self._thread(self._ask)

    def stop(self) -> None:
        self._stop.set()
        for child in self._children:
            child.terminate()
        for thread in self._threads:
            thread.join(timeout=10)
        for child in self._children:
            child.communicate(timeout=10)  # closes its pipe

    def _itself(self, words: tuple[str, ...]) -> None:
        """Begins again where it ends: a CRD that changes ends every watch of its objects."""
        while not self._stop.wait(0.1):
            child = self._kubectl(*words)
            for line in child.stdout or ():
                self.own = json.loads(line)["object"]

    def _changes(self, child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            event = json.loads(line)
            pod = event["object"]
            uid, role = pod["metadata"]["uid"], pod["metadata"]["labels"]["pdserving.io/role"]
            if role == "router":
                if uid not in self._followed and _condition(pod, "Ready"):
                    self._followed.add(uid)
                    name = f"pod/{pod['metadata']['name']}"
                    self._thread(self._log, self._kubectl("logs", "-f", name))
                continue
            if role not in ROLES:
                continue
            self.pods[uid] = self._alive[uid] = pod
            if since := _condition(pod, "ContainersReady"):
                self.ready_at.setdefault(uid, since)
            if event["type"] == "DELETED":
                del self._alive[uid]
            self.counts.append(self._count(role))

    def _count(self, role: str) -> GroupCounts:
        own = [
            pod
            for pod in self._alive.values()
            if pod["metadata"]["labels"]["pdserving.io/role"] == role
            and "deletionTimestamp" not in pod["metadata"]
        ]
        staying = [pod for pod in own if "pdserving.io/draining" not in pod["metadata"]["labels"]]
        return GroupCounts(role, sum(bool(_condition(pod, "Ready")) for pod in staying), len(own))

    def _log(self, child: subprocess.Popen[str]) -> None:
        self.logs.extend(child.stdout or ())

    def _ask(self) -> None:
        while not self._stop.wait(0.5):
            for uid, pod in list(self._alive.items()):
                leaves = "deletionTimestamp" in pod["metadata"]
                if uid in self.ready_at and not (leaves and uid in self.states):
                    with suppress(OSError):
                        self.states[uid] = self.serving.state(pod)

    def _kubectl(self, *words: str) -> subprocess.Popen[str]:
        command = self.serving.cluster.command("-n", self.serving.namespace, *words)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        if self._stop.is_set():
            child.terminate()
        return child

    def _thread(self, work: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


@contextmanager
def watching(serving: Serving) -> Iterator[Watch]:
    """Watch `serving` until the block ends."""
    watch = Watch(serving)
    watch.follow()
    try:
        yield watch
    finally:
        watch.stop()


def is_warm(kernels: Object, proof: Object) -> bool:
    """The engine runs what its warm-up proved, and has compiled nothing itself."""
    compiled = kernels.get("compiled", 0) + kernels.get("compiles_after_ready", 0)
    manifest = kernels.get("manifest")
    return bool(manifest) and manifest == proof.get("manifest") and not compiled


def _condition(pod: Object, kind: str) -> float:
    """Since when it is True, in Unix seconds; 0 while it is not."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return _unix(condition["lastTransitionTime"])
    return 0.0


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
