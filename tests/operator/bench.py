"""A reconciler on a bench: a fake API server, pods that answer, and a clock by hand."""

from fake_api import FakeApi
from pds_operator.observed import EngineState, RouterView
from pds_operator.reconcile import Reconciler
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

    async def look(self, leaders, routers, key):
        return await self.states(leaders, key), await self.views(routers, key)

    async def states(self, leaders, key):
        assert len(key) == 32 or not leaders
        self.leaders = [pod for pod, _ in leaders]
        return {
            pod: EngineState(self.in_flight.get(pod, 0), draining=ip in self.drained)
            for pod, ip in leaders
        }

    async def views(self, routers, key):
        return [RouterView(pod, dict.fromkeys(self.leaders, True)) for pod, _ in routers]

    async def drain(self, ip, seconds, key):
        self.drained.add(ip)
        return ""


class Bench:
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
        """The kubelet's part, and the Deployment controller's."""
        for index, ((kind, _, name), obj) in enumerate(list(self.api.objects.items())):
            if kind == "Pod" and not obj.get("status"):
                obj["status"] = _running(f"10.0.0.{index}")
                self.api.put(obj)
            elif kind == "Pod":
                self._ready(obj)
            elif kind == "Deployment" and not obj.get("status"):
                obj["spec"].setdefault("replicas", 1)
                obj["status"] = {
                    "observedGeneration": 1,
                    "replicas": 1,
                    "updatedReplicas": 1,
                    "readyReplicas": 1,
                }
                self.api.put(obj)
                labels = {"pdserving.io/name": "chat", "pdserving.io/role": "router"}
                meta = {"name": f"{name}-x", "namespace": "team", "labels": labels}
                status = {
                    "podIP": "10.0.1.1",
                    "conditions": [{"type": "Ready", "status": "True"}],
                }
                self.api.put({"kind": "Pod", "metadata": meta, "status": status})

    def _ready(self, obj):
        by_type = {item["type"]: item for item in obj["status"]["conditions"]}
        gate = by_type.get("pdserving.io/routable")
        if gate and gate["status"] == "True" and by_type["Ready"]["status"] != "True":
            by_type["Ready"]["status"] = "True"
            self.api.put(obj)

    @property
    def status(self):
        return self.api.one("PDServing", "chat")["status"]

    def condition(self, kind):
        [found] = [item for item in self.status["conditions"] if item["type"] == kind]
        return found["status"], found["reason"]


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
