"""What happens to a cluster: users, faults, other people. Drawn by chance, one after another."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pds_operator import names
from pds_operator.facts.reading import owner_uid
from pds_operator.run.cluster import FOLLOWED
from simulation import specs
from simulation.knowledge import Knowledge
from simulation.kubelet import Running
from simulation.mishaps import Mishaps
from simulation.operators import Disturbance, SimulatedOperator
from simulation.serving import RING
from simulation.successors import Successors

if TYPE_CHECKING:
    from simulation.world import SimulatedWorld

Object = dict[str, Any]


class Script:
    """Plays a few events, and mends what it broke."""

    def __init__(self, world: "SimulatedWorld") -> None:
        self._world = world
        self._clock = world.clock
        self._before = world.wish
        self._knowledge = Knowledge(world.clock, world.server)
        self._successors = Successors(world)
        self._mishaps = Mishaps(world)
        self.played = 0

    def play(self) -> None:
        """All of it; afterwards nothing goes wrong any more."""
        world, clock = self._world, self._clock
        events: list[tuple[int, Callable[[], None]]] = [
            (8, self._respec),
            (2, self._revert),
            (4, self._kill_operator),
            (3, self._crash_pod),
            (2, self._lose_node),
            (1, self._mishaps.evict_again_and_again),
            (1, self._mishaps.end_beside_a_sidecar),
            (1, self._mishaps.be_away),
            (1, self._mishaps.hold),
            (1, self._mishaps.name_an_image_that_is_nowhere),
            (1, self._mishaps.cannot_pair),
            (2, self._mishaps.fill_a_quota),
            (2, self._delete_pod),
            (2, self._delete_object),
            (1, self._edit_object),
            (1, self._add_to_selector),
            (1, self._successors.begin_anew),
            (1, self._successors.leave_behind),
            (2, self._hide_pod),
            (1, self._hide_object),
            (2, self._break_watch),
            (1, self._silence_watch),
            (1, self._slow_watches),
            (1, self._throttle),
            (1, self._time_out),
            (1, self._deafen),
            (1, self._end_router),
            (2, self._rotate_keys),
            (3, self._delete_secret),
            (1, world.serving.wear_our_labels),
        ]
        weights = [weight for weight, _ in events]
        for _ in range(clock.random.randint(2, 6)):
            [(_, event)] = clock.random.choices(events, weights)
            self.played += 1
            event()
            world.until(clock.now + clock.random.expovariate(0.15))
        self._mend()

    def _mend(self) -> None:
        world = self._world
        self._calm()
        for node in world.nodes:
            world.kubelet.heal(node)
        for obj in self._others("Pod"):
            if names.NAME not in obj["metadata"].get("labels", {names.NAME: ""}):
                self._delete("Pod", obj)
        for operator in world.operators:
            if operator.reconciler is None:
                operator.start()
        begun = max(self._knowledge.all_known_at(), self._mishaps.over_at)
        if begun > self._clock.now:
            world.until(begun)
        freed = specs.freed(world.wish)
        bad = dataclasses.replace(freed, nature=world.wish.nature)
        if bad.nature in specs.GIVEN_UP and not world.judge.lenient:
            if world.wish != bad:
                self._ask(bad)
            world.converge("back to the revision that served last", world.not_back)
        if world.wish != freed:
            self._ask(freed)

    def _calm(self) -> None:
        fresh = Disturbance(self._world.lag)
        self._world.server.quota.clear()
        for name, value in vars(fresh).items():
            setattr(self._world.trouble, name, value)

    def _ask(self, wish: specs.Wish) -> None:
        self._before = self._world.wish
        self._world.ask(wish)

    def _respec(self) -> None:
        self._ask(specs.changed(self._world.wish, self._clock.random))

    def _revert(self) -> None:
        self._ask(self._before)

    # The operator ---------------------------------------------------------------------------

    def _kill_operator(self) -> None:
        operator = self._clock.random.choice(self._world.operators)
        if operator.reconciler is not None:
            # A moment at which it may be in the middle of a round.
            self._clock.after(self._clock.between(0.0, 3.0), self._kill, operator)

    def _kill(self, operator: SimulatedOperator) -> None:
        if operator.reconciler is not None:
            operator.die()
            self._clock.after(self._clock.between(0.5, 15.0), self._start, operator)

    def _start(self, operator: SimulatedOperator) -> None:
        if operator.reconciler is None:
            operator.start()

    def _break_watch(self) -> None:
        operator = self._clock.random.choice(self._world.operators)
        operator.gap(self._clock.random.choice(FOLLOWED), self._clock.between(0.5, 6.0))

    def _silence_watch(self) -> None:
        operator = self._clock.random.choice(self._world.operators)
        kind = self._clock.random.choice([*FOLLOWED, names.KIND])
        self._knowledge.silence(operator, kind)

    def _slow_watches(self) -> None:
        self._trouble("lag", self._clock.between(1.0, 3.0))

    def _throttle(self) -> None:
        self._trouble("refusing", 0.3)

    def _time_out(self) -> None:
        self._trouble("timing_out", 0.1)

    def _deafen(self) -> None:
        self._trouble("deaf", 0.3)

    def _trouble(self, name: str, value: float) -> None:
        self._clock.note(f"trouble: {name} {value:.2f}")
        setattr(self._world.trouble, name, value)

    # Pods and nodes -------------------------------------------------------------------------

    def _engines(self) -> list[Running]:
        pods = self._world.kubelet.pods.values()
        return [pod for pod in pods if not pod.ended and not pod.stopping]

    def _crash_pod(self) -> None:
        pods = [pod for pod in self._engines() if pod.node is not None]
        if pods:
            pod = self._clock.random.choice(pods)
            self._clock.note(f"{pod.name} crashes")
            self._world.judge.harmed([pod])
            self._world.kubelet.fail(pod, 1)

    def _lose_node(self) -> None:
        alive = [node for node in self._world.nodes if node.alive]
        if len(alive) > 2:
            node = self._clock.random.choice(alive)
            self._clock.note(f"{node.name} vanishes")
            kubelet = self._world.kubelet
            self._world.judge.harmed(pod for pod in kubelet.pods.values() if pod.node is node)
            kubelet.lose(node)

    def _delete_pod(self) -> None:
        pods = self._engines()
        if pods:
            pod = self._clock.random.choice(pods)
            self._clock.note(f"somebody deletes {pod.name}")
            self._world.judge.harmed([pod])
            self._world.server.delete("somebody", "Pod", pod.name, pod.uid, None)
            if pod.size > 1:
                self._world.kubelet.harm(pod)

    def _end_router(self) -> None:
        routers = list(self._world.serving.routers.values())
        if routers:
            self._world.judge.troubled = True
            self._clock.note("somebody deletes a router pod")
            self._world.serving.end(self._clock.random.choice(routers))

    # Keys ------------------------------------------------------------------------------------

    def _rotate_keys(self) -> None:
        self._clock.note("new control keys are asked for")
        self._world.rotate()

    def _active(self) -> str:
        return self._world.judge.generations.active(self._world.judge.uid)

    def _delete_secret(self) -> None:
        """But never the ring while nothing else names a key, nor a key while there is none.

        Whoever deletes both, and the operator between its writes, has a key that nobody knows: its
        groups are replaced all the same, or its Secret stays until the PDServing goes.
        """
        found = {obj["metadata"]["name"]: obj for obj in self._others("Secret")}
        if RING not in found:
            return
        keys = [name for name in found if name.startswith("chat-control")]
        named = {obj["data"].get("key", "") for obj in self._others("ControllerRevision")}
        if len(keys) < len(found[RING]["data"]) - 1 or self._active() not in named:
            del found[RING]
        if found:
            self._delete("Secret", found[self._clock.random.choice(sorted(found))])

    # Other objects --------------------------------------------------------------------------

    def _others(self, *kinds: str) -> list[Object]:
        objects = self._world.server.objects.items()
        return [obj for (kind, _), obj in objects if kind in kinds]

    def _delete_object(self) -> None:
        kinds = ("Service", "ConfigMap", "RoleBinding", "PodDisruptionBudget", "NetworkPolicy")
        found = self._others(*kinds)
        if found:
            obj = self._clock.random.choice(found)
            self._delete(obj["kind"], obj)

    def _delete(self, kind: str, obj: Object) -> None:
        meta = obj["metadata"]
        self._clock.note(f"somebody deletes {kind} {meta['name']}")
        self._world.server.delete("somebody", kind, meta["name"], meta["uid"], None)

    def _hide_pod(self) -> None:
        """The first attempt of a group of one pod: others are no longer known."""
        pods = [pod for pod in self._engines() if pod.size == 1 and not pod.group[2]]
        if pods:
            pod = self._clock.random.choice(pods)
            live = self._world.server.find("Pod", pod.name)
            if live is not None and names.NAME in live["metadata"]["labels"]:
                self._world.judge.harmed([pod])
                self._hide(live)

    def _hide_object(self) -> None:
        target = names.revision("chat", self._world.judge.target(specs.spec(self._world.wish)))
        found = self._others("Service", "PodDisruptionBudget", "NetworkPolicy")
        found += [o for o in self._others("ControllerRevision") if o["metadata"]["name"] == target]
        found = [obj for obj in found if names.NAME in obj["metadata"]["labels"]]
        # Without owner and label nothing would say that it was ours.
        found = [obj for obj in found if owner_uid(obj) == self._world.judge.uid]
        own = self._world.server.find(names.KIND, "chat")
        if found and own is not None and "deletionTimestamp" not in own["metadata"]:
            self._hide(self._clock.random.choice(found))

    def _hide(self, live: Object) -> None:
        self._clock.note(f"somebody takes the labels of {live['kind']} {live['metadata']['name']}")
        self._world.server.hide(live)

    def _edit_object(self) -> None:
        found = self._others("Service", "PodDisruptionBudget", "NetworkPolicy")
        if found:
            obj = self._clock.random.choice(found)
            self._clock.note(f"somebody edits {obj['kind']} {obj['metadata']['name']}")
            spec = {**obj["spec"]}
            spec.pop(self._clock.random.choice(sorted(spec)))
            self._world.server.put({**obj, "spec": spec})

    def _add_to_selector(self) -> None:
        """A foreign key: the Service reaches nothing any more."""
        live = self._world.server.find("Service", "chat")
        if live is not None and names.NAME in (live["metadata"].get("labels") or {}):
            self._clock.note("somebody adds to the selector of Service chat")
            selector = {**live["spec"].get("selector", {}), "stranger": "yes"}
            self._world.server.put({**live, "spec": {**live["spec"], "selector": selector}})
