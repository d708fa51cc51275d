"""The reconciler between an API server and pods in memory, round by round."""

from fake_api import FakeApi
from pds_operator.facts.observed import LeaderState, RouterView
from pds_operator.run.reconcile import Reconciler
from pds_operator.settings import Settings
from worlds import NOW, raw_spec

KEY = ("team", "chat")


class FakePods:
    """What pods answer."""

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.drained: set[str] = set()
        self.routers: list[str] = []
        self.leaders: list[str] = []
        self.keys: dict[str, bytes] = {}
        """By which each leader was asked last."""

    async def look(self, leaders, routers, keys):
        return await self.states(leaders, keys), await self.views(routers)

    async def states(self, leaders, keys):
        self.keys |= {pod: keys[pod] for pod, _ in leaders}
        self.leaders = [pod for pod, _ in leaders]
        return {
            pod: LeaderState(self.in_flight.get(pod, 0), draining=ip in self.drained)
            for pod, ip in leaders
        }

    async def views(self, routers):
        return [RouterView(pod, dict.fromkeys(self.leaders, True)) for pod, _ in routers]

    async def drain(self, ip, seconds, key):
        self.drained.add(ip)
        return ""


class Bench:
    """One PDServing, its operator, and the cluster's part: `round` by round."""

    def __init__(self, raw=None, **settings):
        self.api, self.pods, self.leads, self.now = FakeApi(), FakePods(), True, NOW
        self.reconciler = Reconciler(
            self.api, self.pods, Settings(**settings), lambda: self.leads, lambda: self.now
        )
        self.api.store = self.reconciler.store
        self.parent = self.api.put(
            {
                "kind": "PDServing",
                "metadata": {"name": "chat", "namespace": "team", "uid": "uid-chat"},
                "spec": raw or raw_spec(),
            }
        )

    async def round(self):
        self.now += 1
        self.api.calls.clear()
        wait = await self.reconciler.once(KEY)
        return wait, list(self.api.calls)

    async def settle(self):
        for _ in range(30):
            _, calls = await self.round()
            if not calls:
                return
            self.run_pods()
        raise RuntimeError(f"no end: {calls}")

    def run_pods(self):
        """The kubelet's part, and the Deployment controller's: nothing starts without its keys."""
        if ("Secret", "team", "chat-control") not in self.api.objects:
            return
        for index, ((kind, _, _), obj) in enumerate(list(self.api.objects.items())):
            if kind == "Pod" and not obj.get("status"):
                obj["status"] = _running(f"10.0.0.{index}")
                self.api.put(obj)
            elif kind == "Pod":
                self._ready(obj)
            elif kind == "Deployment" and not obj.get("status"):
                self._run_routers(obj)
        self._list_endpoints()

    def _run_routers(self, obj):
        name = obj["metadata"]["name"]
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), 1)
        self.api.put({**obj, "status": {"observedGeneration": 1, **counts}})
        labels = {"pdserving.io/name": "chat", "pdserving.io/role": "router"}
        made = self._controlled("ReplicaSet", f"{name}-1", obj, labels)
        status = {"podIP": "10.0.1.1", "conditions": [{"type": "Ready", "status": "True"}]}
        self._controlled("Pod", f"{name}-x", {**made, "apiVersion": "apps/v1"}, labels, status)

    def _controlled(self, kind, name, by, labels=None, status=None):
        """An object that the controller of `by` makes."""
        owner = {"apiVersion": by["apiVersion"], "kind": by["kind"], "name": by["metadata"]["name"]}
        owner |= {"uid": by["metadata"]["uid"], "controller": True}
        meta = {"name": name, "namespace": "team", "ownerReferences": [owner]}
        meta["labels"] = labels or {}
        return self.api.put({"kind": kind, "metadata": meta, "status": status or {}})

    def _list_endpoints(self):
        """The endpoint controller's part: the routers that the Service selects."""
        service = self.api.objects.get(("Service", "team", "chat"))
        if service is None:
            return
        selector = service["spec"].get("selector", {}).items()
        pods = [o for (kind, _, _), o in self.api.objects.items() if kind == "Pod"]
        ready = [
            pod["metadata"]["name"]
            for pod in pods
            if selector and selector <= pod["metadata"].get("labels", {}).items()
        ]
        known = self.api.objects.get(("EndpointSlice", "team", "chat-x"))
        if known is None or known != self.api.slice_of("chat", ready):
            self.api.put(self.api.slice_of("chat", ready))

    def _ready(self, obj):
        by_type = {item["type"]: item for item in obj["status"]["conditions"]}
        gate = by_type.get("pdserving.io/routable")
        if gate and gate["status"] == "True" and by_type["Ready"]["status"] != "True":
            by_type["Ready"]["status"] = "True"
            self.api.put(obj)

    def ask(self, **changes):
        """The user edits the spec; None takes a field away."""
        parent = self.api.one("PDServing", "chat")
        spec = {**parent["spec"], **changes}
        parent["spec"] = {key: value for key, value in spec.items() if value is not None}
        parent["metadata"]["generation"] += 1
        self.api.put(parent)

    def begin_anew(self, uid):
        """The PDServing is deleted, and applied again: another of the same name."""
        old = self.api.one("PDServing", "chat")
        self.reconciler.store.drop_parent(KEY, old["metadata"]["uid"])
        meta = {"name": "chat", "namespace": "team", "uid": uid}
        self.api.put({"kind": "PDServing", "metadata": meta, "spec": old["spec"]})
        return old["metadata"]["uid"]

    @property
    def status(self):
        return self.api.one("PDServing", "chat")["status"]

    def condition(self, kind):
        found = self._condition(kind)
        return found["status"], found["reason"]

    def message(self, kind):
        return self._condition(kind)["message"]

    def _condition(self, kind):
        [found] = [item for item in self.status["conditions"] if item["type"] == kind]
        return found


def _running(ip):
    return {
        "phase": "Running",
        "podIP": ip,
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "ContainersReady", "status": "True"},
            {"type": "Ready", "status": "False"},
        ],
        "containerStatuses": [{"name": "engine", "started": True}],
    }
