"""What happens to a cluster that is no revision's fault."""

from typing import TYPE_CHECKING, Any

from pds_operator import names
from simulation import specs
from simulation.judge import Violation
from simulation.kubelet import Running

if TYPE_CHECKING:
    from simulation.world import SimulatedWorld

Object = dict[str, Any]
EVICTIONS = (0.0, 12.0, 40.0)
"""When a group is evicted: each time after its backoff."""
HOURS = 7200.0
FULL = 400.0
"""Longer than a Job may wait for its pods."""
HELD = 900.0
"""Longer than the shorter of the deadlines that rollouts have here."""
SETTLED_WITHIN = 90.0
"""Most rollouts are over by then."""
REPORTED_WITHIN = 240.0
"""It takes half a minute, and more where calls are throttled or an operator dies."""
REASONS = ("Evicted", "UnexpectedAdmissionError", "OutOfcpu", "NodeShutdown", "Terminated")


class Mishaps:
    """Disruptions, absences of hours, sidecars that live on."""

    def __init__(self, world: "SimulatedWorld") -> None:
        self._world, self._clock = world, world.clock
        self.over_at = 0.0
        """When the last of those that were begun has happened."""

    def _engines(self) -> list[Running]:
        pods = self._world.kubelet.pods.values()
        return [p for p in pods if not p.ended and not p.stopping and p.node is not None]

    def evict_again_and_again(self) -> None:
        """Nodes end one group three times in a row: of a revision that is being rolled out."""
        self._roll()
        target = self._world.judge.target(specs.spec(self._world.wish))
        pods = [pod for pod in self._engines() if pod.revision == target] or self._engines()
        if pods:
            role, index, _ = self._clock.random.choice(pods).group
            self.over_at = self._clock.now + EVICTIONS[-1]
            for delay in EVICTIONS:
                self._clock.after(delay, self._evict, role, index)

    def _roll(self) -> None:
        """Another version is asked for, and is on its way."""
        self._world.ask(specs.next_version(self._world.wish))
        self._world.until(self._clock.now + self._clock.between(3.0, 20.0))

    def _evict(self, role: str, index: int) -> None:
        pods = [pod for pod in self._engines() if pod.group[:2] == (role, index)]
        if pods:
            reason = self._clock.random.choice(REASONS)
            self._clock.note(f"{pods[0].name} is ended by its node: {reason}")
            self._world.judge.harmed([pods[0]])
            self._world.kubelet.fail(pods[0], 137, reason=reason)

    def end_beside_a_sidecar(self) -> None:
        """The engine ends, and the pod goes on."""
        pods = [pod for pod in self._engines() if pod.loaded]
        if pods:
            pod = self._clock.random.choice(pods)
            self._clock.note(f"{pod.name} ends beside a sidecar that lives")
            self._world.judge.harmed([pod])
            self._world.kubelet.fail(pod, 1, sidecar=True)

    def be_away(self) -> None:
        """No operator for hours, in which a spec is asked for or not; some leave a rollout."""
        world = self._world
        rolls = self._clock.chance(0.5)
        if rolls:
            self._roll()
        else:
            world.until(self._clock.now + SETTLED_WITHIN)
        for operator in world.operators:
            if operator.reconciler is not None:
                operator.die()
        if not rolls:
            self.lose_a_group()
        world.until(self._clock.now + HOURS)
        for operator in world.operators:
            if operator.reconciler is None:
                operator.start()

    def lose_a_group(self) -> None:
        """Pods vanish with their node, and then another version is asked for."""
        world, wish = self._world, self._world.wish
        whole = not world.missing() and wish.nature == "good" and wish.prefill > 1
        plain = wish.surge == 1 and not (wish.unavailable or wish.paired or wish.unified)
        noted = all(
            names.GROUPS in (stored["metadata"].get("annotations") or {})
            for stored in world.server.all("ControllerRevision")
        )
        pods = [pod for pod in self._engines() if pod.group[0] == "prefill"]
        if not (whole and plain and noted and pods) or wish.paused or wish.partition:
            return
        pod = self._clock.random.choice(pods)
        self._clock.note(f"{pod.name} vanishes")
        world.judge.harmed([pod])
        world.kubelet.harm(pod)
        world.server.remove(world.server.get("Pod", pod.name))
        world.ask(specs.next_version(wish))
        world.judge.blame.vanished("prefill", pod.revision)

    def cannot_pair(self) -> None:
        """Prefill and decode pods of a new revision see two models under one path."""
        world, wish = self._world, self._world.wish
        if not wish.unified:
            world.ask(specs.mismatched(wish))
            world.until(self._clock.now + self._clock.between(60.0, 300.0))

    def name_an_image_that_is_nowhere(self) -> None:
        """It stays in the spec for a while, and status says so."""
        world = self._world
        world.ask(specs.unpullable(world.wish))
        world.until(self._clock.now + REPORTED_WITHIN + 60.0)
        made_by = self._clock.now - REPORTED_WITHIN
        late = [pod.name for pod in self._engines() if pod.nature == "pull" and pod.made < made_by]
        status = world.server.get(names.KIND, "chat").get("status") or {}
        conditions = {item["type"]: item["status"] for item in status.get("conditions", [])}
        alive = any(operator.reconciler for operator in world.operators)
        if late and alive and conditions.get("Degraded") != "True":
            raise Violation(f"{late} cannot start, and no condition says so")

    def fill_a_quota(self) -> None:
        """Of Jobs or of pods, for as long as it takes to notice; a version is asked for."""
        world, kind = self._world, self._clock.random.choice(["Job", "Pod"])
        self._clock.note(f"the quota of kind {kind} is full")
        world.server.quota[kind] = len(world.server.all(kind))
        world.ask(specs.next_version(world.wish))
        world.until(self._clock.now + self._clock.between(60.0, FULL))
        if self._clock.chance(0.5):
            world.server.quota.pop(kind, None)

    def hold(self) -> None:
        """A rollout stands still by a user's wish for longer than its deadline."""
        world, wish = self._world, self._world.wish
        world.ask(specs.waiting(specs.next_version(wish)))
        world.until(self._clock.now + HELD)
        world.ask(specs.freed(world.wish))
