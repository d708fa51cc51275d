"""One run: a cluster, its operators and their users, from a seed to its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pds_engine.signing import key_id
from pds_operator import names
from pds_operator.facts.reading import owner_uid
from pds_operator.settings import LeaseSettings, Settings
from simulation import memory, specs
from simulation.clock import START, Clock
from simulation.endpoints import Endpoints
from simulation.garbage import Garbage
from simulation.jobs import Jobs
from simulation.judge import Judge, Violation
from simulation.kubelet import Kubelet, Node
from simulation.operators import KEY, Disturbance, SimulatedOperator
from simulation.script import Script
from simulation.server import ApiServer
from simulation.serving import RING, SimulatedServing

Object = dict[str, Any]
UID = "uid-chat"
CONVERGES_WITHIN = 1500.0
"""Backoffs of groups and of refused writes are up to 300 s each."""
SETTLES_WITHIN = 35.0
"""Leaders are asked this seldom when nothing is under way: a last word on status."""
QUIET = 45.0
"""At rest nothing is written for so long."""
ENDS_WITHIN = 200.0
"""A list of PDServings comes at least every 144 s, and shows what no event did."""
SKEWS = (900.0, -900.0)
"""Seconds by which the clocks of half of the nodes are wrong, in some clusters."""
SETTINGS = {
    replicas: Settings(probe_seconds=3.0, lease=LeaseSettings(enabled=replicas > 1))
    for replicas in (1, 2)
}


class RunFailed(Exception):
    """A run that broke an invariant: the seed, what, and what led there."""

    def __init__(self, seed: int, reason: str, trace: list[str]) -> None:
        lines = "\n".join(trace)
        super().__init__(f"seed {seed}: {reason}\n{lines}\nseed {seed}: {reason}")
        self.seed, self.reason = seed, reason


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What a run was about."""

    seconds: float
    rounds: int
    writes: int
    served: int
    events: int


class SimulatedWorld:
    """Everything of one run."""

    def __init__(self, seed: int) -> None:
        memory.KEYS.made = 0
        self.clock = Clock(seed)
        self.server = ApiServer(self.clock)
        slots = 7 if self.clock.chance(0.7) else 4  # where nodes are lost a surge waits
        self.nodes = [Node(f"node-{number}", slots) for number in range(4)]
        wrong = 0.5 if self.clock.chance(0.4) else 0.0
        for node in self.nodes:
            if self.clock.chance(wrong):
                node.ahead = self.clock.random.choice(SKEWS)
        self.kubelet = Kubelet(self.clock, self.server, self.nodes)
        self.serving = SimulatedServing(self.clock, self.server, self.kubelet)
        Jobs(self.clock, self.server, self.kubelet)
        Endpoints(self.clock, self.server, "chat")
        garbage = Garbage(self.clock, self.server)
        self.judge = Judge(self.clock, self.server, self.kubelet, self.serving, UID)
        garbage.collects = self.collected
        self.lag = self.clock.random.choice([0.4, 0.8, 1.2])
        self.trouble = Disturbance(self.lag)
        self.wish = specs.first(self.clock.random)
        replicas = 2 if self.clock.chance(0.4) else 1
        self.operators = [
            SimulatedOperator(
                f"operator-{n}",
                self.clock,
                self.server,
                self.serving,
                SETTINGS[replicas],
                self.trouble,
            )
            for n in range(replicas)
        ]
        self.judge.operators = {operator.name: operator for operator in self.operators}
        for operator in self.operators:
            operator.begins = self.judge.begins  # type: ignore[method-assign]

    def collected(self, obj: Object) -> None:
        """The garbage collector takes `obj`, and no operator is to blame for what it served."""
        pod = self.kubelet.pods.get(obj["metadata"]["uid"])
        if pod is not None:
            self.judge.harmed([pod])

    def ask(self, wish: specs.Wish) -> None:
        """The user writes the spec."""
        self.clock.note(f"spec: {wish}")
        if wish.lenient or self.wish.lenient:
            self.judge.lenient = True
        self.wish = wish
        self.judge.asked()
        live = self.server.find(names.KIND, "chat") or {"metadata": {"generation": 0}}
        meta = {"name": "chat", "namespace": KEY[0], "uid": self.judge.uid, **live["metadata"]}
        meta["generation"] += 1
        kind = {"kind": names.KIND, "apiVersion": names.API_VERSION}
        self.server.put({**live, **kind, "metadata": meta, "spec": specs.spec(wish)})

    def rotate(self) -> None:
        """The user asks for new control keys."""
        live = self.server.get(names.KIND, "chat")
        notes = {**live["metadata"].get("annotations", {}), names.ROTATE: self.clock.text()}
        self.server.put({**live, "metadata": {**live["metadata"], "annotations": notes}})

    def run(self) -> RunFigures:
        """Raises Violation."""
        clock = self.clock
        self.ask(self.wish)
        for operator in self.operators:
            clock.after(clock.between(0.0, 1.0), operator.start)
        self.converge("from nothing", self.missing)
        self.serving.request()
        script = Script(self)
        script.play()
        self.converge("after the last fault", self.missing)
        self._rest()
        if clock.chance(0.3):
            self._delete()
        return RunFigures(
            clock.now - START,
            sum(operator.rounds for operator in self.operators),
            self.judge.writes,
            self.serving.served,
            script.played,
        )

    def until(self, moment: float) -> None:
        """Let things happen until then."""
        reached = [False]
        self.clock.after(moment - self.clock.now, lambda: reached.__setitem__(0, True))
        while not reached[0]:
            self.clock.step()

    def converge(self, what: str, missing: Callable[[], str]) -> None:
        """Until nothing is `missing`. Raises Violation."""
        limit = self.clock.now + CONVERGES_WITHIN
        while (found := missing()) and self.clock.now < limit:
            self.until(self.clock.now + 2.0)
        if found:
            raise Violation(f"no convergence {what}: {found}")

    def _rest(self) -> None:
        """A fixed point: a settled world costs no write."""
        self.serving.open = False
        self.until(self.clock.now + SETTLES_WITHIN)
        before, rounds = self.judge.writes, sum(operator.rounds for operator in self.operators)
        self.until(self.clock.now + QUIET)
        if self.judge.writes != before:
            raise Violation(f"{self.judge.writes - before} writes at rest")
        if sum(operator.rounds for operator in self.operators) == rounds:
            raise Violation("nobody looks any more")

    def _delete(self) -> None:
        """The PDServing goes, mostly while kopf does not watch; and another comes, some time."""
        if self.clock.chance(0.7):
            for operator in self.operators:
                operator.gap(names.KIND, 5.0)
        self.clock.note("somebody deletes the PDServing")
        self.server.delete("somebody", names.KIND, "chat", self.judge.uid, None)
        self.until(self.clock.now + ENDS_WITHIN)
        rounds = sum(operator.rounds for operator in self.operators)
        self.until(self.clock.now + 2 * ENDS_WITHIN)
        if sum(operator.rounds for operator in self.operators) != rounds:
            raise Violation("rounds for a PDServing that is gone")
        if left := [place for place, obj in self.server.objects.items() if owner_uid(obj)]:
            raise Violation(f"what a PDServing had is left: {left}")
        self.judge.succeeded("uid-anew")
        self.judge.lenient = True
        self.ask(self.wish)
        self.converge("made anew", self.missing)

    def missing(self) -> str:
        """What the cluster lacks of what is wanted; nothing at the end."""
        spec = specs.spec(self.wish)
        target = self.judge.target(spec)
        counts = dict.fromkeys((role for role in names.ROLES if role in spec), 0)
        for (role, index, attempt), pods in self.judge.groups().items():
            place = f"{role} group {index}, attempt {attempt}"
            if pods[0]["metadata"]["labels"][names.REVISION] != target:
                return f"{place} is of another revision"
            if not self.judge.serves(pods):
                return f"{place} does not serve"
            counts[role] = counts.get(role, 0) + 1
        for role, count in counts.items():
            if count != (spec[role]["replicas"] if role in spec else 0):
                return f"{count} groups of {role}"
        return (
            self._keys()
            or self._filled(target)
            or self._conditions(ready=all(counts.values()), degraded=False)
        )

    def _filled(self, target: str) -> str:
        """The Jobs of GPU types that are lacking, or not over."""
        name = names.warmup("chat", target, "sm_90")
        live = self.server.find("Job", name)
        if self.wish.shared and self.wish.ahead:
            done = [c["type"] for c in (live or {}).get("status", {}).get("conditions", [])]
            return "" if done == ["Complete"] else f"Job {name} is {done or 'under way'}"
        return f"Job {name} is left" if live is not None else ""

    def _keys(self) -> str:
        """What is left of keys that no group has any more, or to do for one that is asked for."""
        active = self.judge.generations.active(self.judge.uid)
        asked = [
            (obj or {"metadata": {}})["metadata"].get("annotations", {}).get(names.ROTATE)
            for obj in (
                self.server.find(names.KIND, "chat"),
                self.server.find("Secret", names.control_secret("chat", active)),
            )
        ]
        if asked[0] and asked[0] != asked[1]:
            return f"keys are asked for by {asked[0]}, and made by {asked[1]}"
        held = {pod.key for pod in self.kubelet.pods.values()}
        ring = self.server.find("Secret", RING)
        kept = {name for name in (ring or {"data": ()})["data"] if name != "hmac.key"}
        if held and kept != {f"{key_id(key)}.key" for key in held}:
            return f"the ring holds {sorted(kept)}"
        known = {secret["metadata"]["name"] for secret in self.server.all("Secret")}
        seal = names.seal("cache") if self.wish.shared else names.cache_key("chat")
        wanted = {RING, seal, names.control_secret("chat", active)}
        return f"there are the Secrets {sorted(known)}" if known != wanted else ""

    def not_back(self) -> str:
        """What the cluster lacks of a revision that served, when that of the spec is bad."""
        bad = self.judge.target(specs.spec(self.wish))
        stored = {
            obj["metadata"]["name"].removeprefix("chat-"): obj["metadata"].get("annotations") or {}
            for obj in self.server.all("ControllerRevision")
        }
        if names.FAILED not in stored.get(bad, ()):
            good = [own for own in stored if own != bad and names.SERVED in stored[own]]
            good = [own for own in good if self.judge.generations.startable(own)]
            return f"revision {bad} is not given up" if good else ""
        kinds, roles = set(), set()
        for (role, index, attempt), pods in self.judge.groups().items():
            kinds.add(pods[0]["metadata"]["labels"][names.REVISION])
            roles.add(role)
            if not self.judge.serves(pods):
                return f"{role} group {index}, attempt {attempt} does not serve"
        if bad in kinds or len(kinds) != 1 or roles not in ({"unified"}, {"prefill", "decode"}):
            return f"there are {roles} of revisions {kinds}"
        return self._conditions(ready=True, degraded=True)

    def _conditions(self, *, ready: bool, degraded: bool) -> str:
        """What the conditions should be and are not."""
        status = (self.server.find(names.KIND, "chat") or {}).get("status") or {}
        states = {item["type"]: item["status"] for item in status.get("conditions", [])}
        expected = {"Ready": str(ready), "Progressing": "False", "Degraded": str(degraded)}
        wrong = {kind: states.get(kind) for kind in expected if states.get(kind) != expected[kind]}
        return f"conditions {wrong}" if wrong else ""


def run(seed: int) -> RunFigures:
    """One run. Raises Failed."""
    world = SimulatedWorld(seed)
    try:
        return world.run()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunFailed(seed, reason, list(world.clock.trace)) from error
