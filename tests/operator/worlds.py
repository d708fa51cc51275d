"""A small world for the tests: facts made by hand, and a cluster that obeys a plan."""

import copy
import dataclasses
from typing import Any

from pds_operator import names, revision, schema
from pds_operator.decide import ownership
from pds_operator.decide.actions import (
    Action,
    Annotate,
    Create,
    Delete,
    KeepRing,
    MakeCacheKey,
    MakeKey,
    MakeSeal,
    MarkDraining,
    Recover,
    ReportScale,
    Say,
    SetGate,
)
from pds_operator.decide.plan import Desired, Plan, plan
from pds_operator.errors import RevisionMissing
from pds_operator.facts.observed import (
    ControlKeys,
    KeySecret,
    LeaderState,
    Observed,
    Pod,
    Revision,
    RouterPod,
    RouterView,
    ScopeFailure,
    WarmupPod,
    rfc3339,
)
from pds_operator.facts.reading import pod_facts, revision_facts
from pds_operator.render.owner import Owner
from pds_operator.settings import Settings

OWNER = Owner("chat", "team", "uid-chat")
NOW = 1_700_000_000.0
ROUTER = RouterPod("chat-router-0", "10.0.0.1", ready=True)


def raw_spec(**changes: Any) -> dict[str, Any]:
    """2 prefill and 1 decode; `changes` replace top-level fields (None removes one)."""
    base: dict[str, Any] = {
        "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
        "prefill": {"replicas": 2},
        "decode": {"replicas": 1},
        "rollout": {"drainSeconds": 60},
    }
    merged = {**base, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def desired(raw: dict[str, Any] | None = None, rotate: str = "", **settings: Any) -> Desired:
    raw = raw_spec() if raw is None else raw
    return Desired(OWNER, 1, raw, schema.parse(raw), Settings(**settings), rotate)


class World:
    """A cluster in which every write works at once and pods turn ready by `settle`."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.now = NOW
        self.pods: dict[str, Pod] = {}
        self.revisions: dict[str, Revision] = {}
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.busy: dict[str, int] = {}
        self.asked: set[str] = set()
        self.keys = ControlKeys()
        self.rotate = ""
        """The PDServing's annotation rotate-keys."""
        self.counter = 0
        self.failures: dict[str, ScopeFailure] = {}
        self.unschedulable = False
        self.schedules = False
        """Pods have a node from the first."""
        self.compiles = False
        """Warm-up Jobs take their time; else they end at once."""
        self.warmups: tuple[WarmupPod, ...] = ()
        self.router_pods: tuple[RouterPod, ...] = (ROUTER,)
        """There once their Deployment is."""
        self.fingerprints: dict[str, str] = {}
        """By leader pod, what it reports."""
        self.counts: dict[str, tuple[int, int]] = {}

    def observed(self) -> Observed:
        leaders = [pod for pod in self.pods.values() if pod.leader and pod.started]
        whole = {
            (pod.role, pod.revision)
            for pod in leaders
            if pod.containers_ready and not pod.draining and not pod.deleting
        }

        def pair(pod: Pod) -> list[str]:
            return ["unified"] if pod.role == "unified" else ["prefill", "decode"]

        def routable(pod: Pod) -> bool:
            return (
                pod.containers_ready
                and not pod.draining
                and not pod.deleting
                and all((role, pod.revision) in whole for role in pair(pod))
            )

        mine = ownership.sort(
            OWNER, self.pods.values(), objects=copy.deepcopy(self.objects), warmups=()
        )
        return Observed(
            pods=tuple(mine.pods.values()),
            revisions=dict(self.revisions),
            objects=mine.objects,
            orphans=mine.orphans,
            others=mine.others,
            endpoints=1,
            states={
                pod.name: LeaderState(
                    in_flight=self.busy.get(pod.name, 0),
                    draining=pod.name in self.asked,
                    fingerprint=self.fingerprints.get(pod.name, ""),
                )
                for pod in leaders
            },
            routers=(
                RouterView("r", {pod.name: routable(pod) for pod in leaders}, dict(self.counts)),
            ),
            router_pods=self.router_pods if ("Deployment", "chat-router") in self.objects else (),
            warmups=self.warmups,
            keys=self.keys,
            failures=dict(self.failures),
        )

    def plan(self) -> Plan:
        return plan(self.observed(), desired(self.raw, self.rotate), self.now)

    def round(self) -> list[str]:
        """One round, carried out; what was done to pods and revisions, in order."""
        done = []
        for action in self.plan().actions:
            self._do(action)
            text = str(action)
            if not isinstance(action, Say) and _worth_listing(text):
                done.append(text.removeprefix("create pod ").removeprefix("create "))
        return done

    def wait(self, seconds: float) -> None:
        """Time goes by, and the operator looks as often as it does."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 15)
            self.round()

    def settle(self, most: int = 60) -> list[list[str]]:
        """Rounds until nothing happens; after each, all that can turn ready does."""
        rounds = []
        for _ in range(most):
            done = self.round()
            self.turn_ready()
            self.bury()
            if done:
                rounds.append(done)
            elif not self.plan_writes():
                return rounds
        raise RuntimeError(f"no end: {rounds[-5:]}")

    def plan_writes(self) -> bool:
        return any(not isinstance(action, Say) for action in self.plan().actions)

    def end_job(self, kind: str = "Complete") -> None:
        """The Jobs that run now end: "Complete" or "Failed"."""
        for (other, _), obj in self.objects.items():
            if other == "Job":
                ended = {
                    "type": kind,
                    "status": "True",
                    "message": "BackoffLimitExceeded",
                    "lastTransitionTime": rfc3339(self.now),
                }
                obj.setdefault("status", {"conditions": [ended]})

    def turn_ready(self) -> None:
        if not self.unschedulable and not self.compiles:
            self.end_job()
        for name, pod in self.pods.items():
            if pod.failed or pod.deleting or self.unschedulable:
                continue
            ready = bool(pod.routable) or not pod.leader
            self.pods[name] = dataclasses.replace(
                pod,
                phase="Running",
                scheduled=True,
                started=True,
                containers_ready=True,
                ready=ready,
                ready_since=self.now if ready else None,
                ip="10.0.0.1",
            )

    def bury(self) -> None:
        """Pods that are being deleted are gone."""
        self.pods = {name: pod for name, pod in self.pods.items() if not pod.deleting}

    @staticmethod
    def stored(obj: dict[str, Any]) -> Revision:
        return revision_facts(obj, OWNER.name)

    def change(self, name: str, **facts: Any) -> None:
        self.pods[name] = dataclasses.replace(self.pods[name], **facts)

    def fail(self, name: str, exit_code: int = 1, message: str = "boom") -> None:
        self.change(
            name,
            phase="Failed",
            containers_ready=False,
            ready=False,
            exit_code=exit_code,
            message=message,
            failed_at=self.now,
        )

    def lose(self, key: str) -> None:
        """Somebody deletes the Secret of a control key."""
        kept = {own: it for own, it in self.keys.secrets.items() if own != key}
        self.keys = dataclasses.replace(self.keys, secrets=kept)

    def _keep_keys(self, action: Action) -> None:
        keys, secrets = self.keys, dict(self.keys.secrets)
        match action:
            case MakeKey(first=first, asked=asked):
                self.counter += 1
                key = "" if first else f"{self.counter:010x}"
                secrets[key] = KeySecret(f"uid-{self.counter}", asked)
                ring = frozenset({key}) | (keys.ring or frozenset())
                held = keys.held | {key}
                more = {"secrets": secrets, "ring": ring, "active": key, "held": held}
                self.keys = dataclasses.replace(keys, **more)
            case KeepRing(keys=ring, active=key):
                self.keys = dataclasses.replace(keys, ring=ring, active=key)
            case MakeCacheKey():
                self.keys = dataclasses.replace(keys, cache=True)
            case MakeSeal(claim=claim):
                self.keys = dataclasses.replace(keys, seals=keys.seals | {names.seal(claim)})
            case Delete(name=name):
                del secrets[name.removeprefix(f"{OWNER.name}-control").removeprefix("-")]
                self.keys = dataclasses.replace(keys, secrets=secrets)

    def _do(self, action: Action) -> None:
        match action:
            case MakeKey() | KeepRing() | MakeCacheKey() | MakeSeal() | Delete(kind="Secret"):
                self._keep_keys(action)
            case Create(obj={"kind": "Pod"} as obj):
                self.counter += 1
                obj = copy.deepcopy(obj)
                obj["metadata"]["uid"] = f"uid-{self.counter}"
                facts = pod_facts(obj)
                assert facts is not None
                assert facts.name not in self.pods
                self.pods[facts.name] = dataclasses.replace(
                    facts, created=self.now, scheduled=self.schedules
                )
            case Create(obj=obj):
                obj = copy.deepcopy(obj)
                obj["metadata"]["uid"] = f"uid-{obj['kind']}-{obj['metadata']['name']}"
                obj["metadata"]["creationTimestamp"] = rfc3339(self.now)
                if obj["kind"] == "ControllerRevision":
                    stored = revision_facts(obj, OWNER.name)
                    self.revisions[stored.digest] = stored
                if obj["kind"] == "Deployment":
                    obj["spec"].setdefault("replicas", 1)
                    obj["status"] = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
                self.objects[obj["kind"], obj["metadata"]["name"]] = obj
            case Delete(kind="Pod", name=name):
                self.pods[name] = dataclasses.replace(self.pods[name], deleting=True)
            case Delete(kind=kind, name=name):
                self.objects.pop((kind, name), None)
                if kind == "ControllerRevision":
                    self.revisions.pop(name.removeprefix(f"{OWNER.name}-"))
            case Annotate(name=name, annotations=notes):
                obj = self.objects["ControllerRevision", name]
                kept = {**obj["metadata"].get("annotations", {}), **notes}
                obj["metadata"]["annotations"] = {k: v for k, v in kept.items() if v is not None}
                stored = revision_facts(obj, OWNER.name)
                self.revisions[stored.digest] = stored
            case Recover(metadata={"name": name}, scope=scope):
                if ("ControllerRevision", name) in self.objects:
                    stored = revision_facts(self.objects["ControllerRevision", name], OWNER.name)
                    self.revisions[stored.digest] = stored
                    self.failures.pop(scope, None)
                else:
                    self.failures[scope] = ScopeFailure(
                        RevisionMissing.reason, name, 1, self.now + 5
                    )
            case MarkDraining(pod=name, deadline=deadline):
                self.change(name, draining=True, drain_deadline=deadline)
            case ReportScale(name=name, status=status):
                self.objects[names.ROLE_KIND, name]["status"] = status
            case SetGate(pod=name, routable=routable):
                self.change(name, routable=routable)
            case _ if hasattr(action, "ip"):
                self.asked.add(action.pod)
            case _:
                if hasattr(action, "obj") and str(action).startswith("apply"):
                    kind, name = action.obj["kind"], action.obj["metadata"]["name"]
                    kept = self.objects[kind, name]
                    obj = copy.deepcopy(action.obj)
                    obj["metadata"]["uid"] = kept["metadata"]["uid"]
                    if kind == "Deployment":
                        obj["spec"].setdefault("replicas", 1)
                    self.objects[kind, name] = {**obj, "status": kept.get("status", {})}


def _worth_listing(text: str) -> bool:
    subject = text.split()[1] if len(text.split()) > 1 else ""
    return text.startswith(("drain", "route", "unroute", "delete", "hold")) or subject in (
        "pod",
        "job",
        "controllerrevision",
    )


def digest(raw: dict[str, Any]) -> str:
    return revision.digest(raw)


def pod_names(world: World) -> list[str]:
    return sorted(world.pods)


def settled(seconds: float = 0.0) -> World:
    """A world that stands whole, and has done so for so long."""
    world = World(raw_spec())
    world.settle()
    world.now += seconds
    return world


def problems(world: World) -> list[str]:
    return [problem.reason for problem in world.plan().problems]
