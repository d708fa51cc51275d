"""What must hold at every instant, by the world as it is and not as anybody sees it."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pds_operator import names
from pds_operator.decide.ownership import sort
from pds_operator.decide.rollout import RolloutLimits
from pds_operator.facts.observed import seconds
from pds_operator.facts.reading import owner_uid
from pds_operator.render.owner import Owner
from simulation.blame import RevisionBlame
from simulation.clock import Clock
from simulation.generations import Generations
from simulation.kubelet import Kubelet, Running, gate
from simulation.losses import Losses
from simulation.once import JobsOnce
from simulation.operators import KEY, SimulatedOperator
from simulation.punctual import Punctual
from simulation.server import ApiServer
from simulation.serving import SimulatedRouter, SimulatedServing
from simulation.specs import held

Object = dict[str, Any]
Place = tuple[str, int]
"""(role, index) of a group, whatever its attempt."""
PAIRS = {"prefill": "decode", "decode": "prefill", "unified": "unified"}


class Violation(Exception):
    """An invariant does not hold."""


class Judge:
    """Looks at every write before it takes place, and at every request."""

    def __init__(
        self, clock: Clock, server: ApiServer, kubelet: Kubelet, serving: SimulatedServing, uid: str
    ) -> None:
        self._clock, self._server, self._kubelet = clock, server, kubelet
        self.uid = uid
        self.operators: dict[str, SimulatedOperator] = {}
        self.writes = 0
        self.losses = Losses(clock)
        self.troubled = False
        """Groups were lost that have not been replaced yet: a request may find none."""
        server.watched = self._write
        self._punctual = Punctual(clock, kubelet)
        self.generations = Generations(server)
        self.blame = RevisionBlame(server, kubelet, self.generations)
        self._once = JobsOnce(server)
        kubelet.over = self._over  # type: ignore[method-assign]
        serving.chosen = self._chosen  # type: ignore[method-assign]
        serving.unserved = self._unserved  # type: ignore[method-assign]
        self.lenient = False
        """A spec that allows a role to be without a group has been asked for."""
        self._served = False
        self._groups: tuple[int, dict[tuple[str, int, int], list[Object]]] = (-1, {})
        self._specs: dict[str, Object] = {}
        self._parents: dict[str, str] = {}
        """By operator, the uid of the PDServing that its round is for."""
        self._serving: dict[str, set[str]] = {}
        """By operator, the revisions that serve when its round for a held spec begins."""

    def succeeded(self, uid: str) -> None:
        """Another PDServing of the same name is there."""
        self.uid = uid
        self._groups = (-1, {})
        self.asked()

    def asked(self) -> None:
        """A user asks for something else."""
        self.blame.forget()
        self._once.forget()

    # Facts --------------------------------------------------------------------------------

    def target(self, spec: Object, operator: SimulatedOperator | None = None) -> str:
        """The revision that `spec` asks for; as it was when the round of `operator` began."""
        return self.generations.target(spec, self.uid, operator.name if operator else "")

    def spec(self, operator: SimulatedOperator) -> Object:
        """The spec that the round of `operator` was planned for."""
        return self._specs.get(operator.name, {})

    def limits(self, spec: Object, role: str) -> tuple[int, int, int]:
        """(wanted, surge, unavailable) groups of `role`."""
        given = spec.get("rollout") or {}
        want = spec[role].get("replicas", 1) if role in spec else 0
        limits = RolloutLimits(given.get("maxSurge", 1), given.get("maxUnavailable", 0))
        return (want, *limits.of(want))

    def groups(self) -> dict[tuple[str, int, int], list[Object]]:
        """Our engine pods by (role, index, attempt), as the API server has them."""
        if self._groups[0] == self._server.version:
            return self._groups[1]
        found: dict[tuple[str, int, int], list[Object]] = defaultdict(list)
        for (kind, _), obj in self._server.objects.items():
            if kind == "Pod" and owner_uid(obj) == self.uid:
                labels = obj["metadata"]["labels"]
                if names.ATTEMPT in labels:
                    place = (
                        labels[names.ROLE],
                        int(labels[names.GROUP_INDEX]),
                        int(labels[names.ATTEMPT]),
                    )
                    found[place].append(obj)
        self._groups = (self._server.version, found)
        return found

    def leader(self, pods: list[Object]) -> Running | None:
        """The leader's process, while it runs."""
        for obj in pods:
            if obj["metadata"]["labels"].get(names.RANK_POD) == "0":
                return self._kubelet.pods.get(obj["metadata"]["uid"])
        return None

    def serves(self, pods: list[Object]) -> bool:
        """Routers send it requests: it is ready, routed to, and does not leave.

        They do from before its gate is set; the kubelet's Ready follows the gate, late.
        """
        leader = self.leader(pods)
        return (
            leader is not None
            and leader.ready
            and (leader.gated or any(gate(pod) for pod in pods))
            and not any(_leaves(pod) for pod in pods)
            and _seen(pods)
        )

    def serving(
        self, spec: Object, missed: Iterable[str] = (), operator: SimulatedOperator | None = None
    ) -> dict[str, set[Place]]:
        """Groups that serve, by role: while there are old ones, new ones only as pairs.

        A role that is `missed` counts as there: its loss may take all new ones of the other along.
        """
        target = self.target(spec, operator)
        by_role: dict[str, set[Place]] = defaultdict(set)
        new: dict[str, set[Place]] = defaultdict(set)
        for (role, index, _), pods in self.groups().items():
            if self.serves(pods):
                own = pods[0]["metadata"]["labels"][names.REVISION]
                (new if own == target else by_role)[role].add((role, index))
        wanted = [role for role in names.ROLES if spec.get(role, {}).get("replicas")]
        if not by_role or all(role in new or role in missed for role in wanted):
            for role, places in new.items():
                by_role[role] |= places
        return by_role

    def harmed(self, pods: Iterable[Running]) -> None:
        """By something else than the operator: a request may find no group for a while."""
        self.troubled = True
        self.losses.add(pods)

    def begins(self, operator: SimulatedOperator) -> None:
        """A round of `operator` begins: what it decides on is known now."""
        reconciler = operator.reconciler
        parent = reconciler.store.parent(KEY) if reconciler else None
        self._specs[operator.name] = parent["spec"] if parent else {}
        self.generations.begins(operator.name, self.uid)
        self._parents[operator.name] = parent["metadata"]["uid"] if parent else ""
        self.losses.begins(operator)
        self._punctual.begins()
        self.blame.begins()
        if parent is not None and held(parent["spec"]):
            self._serving[operator.name] = self._serving_now()

    def _serving_now(self) -> set[str]:
        """The revisions that serve."""
        return {
            pods[0]["metadata"]["labels"][names.REVISION]
            for pods in self.groups().values()
            if self.serves(pods)
        }

    # Writes -------------------------------------------------------------------------------

    def _write(self, by: str, verb: str, wanted: Object, live: Object | None) -> None:
        operator = self.operators.get(by)
        if operator is None or wanted.get("kind") == "Lease":
            return
        kind = (live or wanted)["kind"]
        name = wanted["metadata"].get("name") or (live or wanted)["metadata"].get("name", "")
        self._clock.note(f"{by}: {verb} {kind} {name or wanted.get('reason', '')}")
        self.writes += 1
        self._may_write(operator)
        if live is not None:
            owner = owner_uid(live)
            mine = live["kind"] == names.KIND or owner == self._parents[by]
            # An orphan of ours: adopted, or left behind just now.
            mine = mine or (not owner and names.NAME in live["metadata"].get("labels", {}))
            self._hold(mine, f"{verb} of {kind} {name}, which is not ours")
            blamed = self.blame.rejected(wanted, live)
            self._hold(not blamed, blamed)
        if kind == "Pod":
            self._pod_write(operator, verb, wanted, live)
        if kind == "Job" and live is None:
            twice = self._once.made(operator, wanted)
            self._hold(not twice, twice)

    def _may_write(self, operator: SimulatedOperator) -> None:
        lease = self._server.find("Lease", "pds-operator")
        if lease is not None:
            spec = lease["spec"]
            holder = spec["holderIdentity"] == operator.lease.identity
            self._hold(holder, f"{operator.name} writes, and the lease is another's")

    def _pod_write(
        self, operator: SimulatedOperator, verb: str, wanted: Object, live: Object | None
    ) -> None:
        if live is None:
            self._created(operator, wanted)
            return
        labels = live["metadata"]["labels"]
        place = labels[names.ROLE], int(labels[names.GROUP_INDEX]), int(labels[names.ATTEMPT])
        pods = self.groups()[place]
        if verb == "delete":
            self._deleted(pods, live, wanted["grace"])
        drains = names.DRAINING in wanted["metadata"].get("labels", {})
        if (drains or verb == "delete") and self.serves(pods):
            self._taken_away(operator, place[0], place[1])
        if verb == "gate" and wanted["status"]["conditions"][0]["status"] == "True":
            leader = self.leader(pods)
            warm = leader is None or leader.ended or leader.warm
            self._hold(bool(warm), f"{live['metadata']['name']} is routed to and was not warmed up")

    def _created(self, operator: SimulatedOperator, obj: Object) -> None:
        labels = obj["metadata"]["labels"]
        role, index = labels[names.ROLE], int(labels[names.GROUP_INDEX])
        late = self._punctual.late(obj)
        self._hold(not late, late)
        spec = self.spec(operator)
        if int(labels[names.ATTEMPT]) or role not in spec:
            return
        before = self.blame.made(labels)
        self._hold(not before, before)
        want, surge, _ = self.limits(spec, role)
        there = {index}
        for (other, number, _), pods in self.groups().items():
            counts = other == role and _seen(pods) and any(map(_runs, pods))
            if counts and not self._spared_by_surge(pods, labels):
                there.add(number)
        if self._held_back(operator, spec, labels):
            raise Violation(f"{obj['metadata']['name']} is made, and the rollout is held")
        if self._given_up(operator, labels[names.REVISION]):
            raise Violation(f"{obj['metadata']['name']} is made of a revision that was given up")
        most = want + surge
        self._hold(len(there) <= most, f"{len(there)} groups of {role}, and {most} at most")

    def _held_back(self, operator: SimulatedOperator, spec: Object, labels: Object) -> bool:
        """Nothing of the spec's revision may be made: another serves, and goes on to."""
        target = self.target(spec, operator)
        if not held(spec) or labels[names.REVISION] != target:
            return False
        others = self._serving[operator.name] - {target}
        return any(self.generations.startable(other) for other in others)

    def _given_up(self, operator: SimulatedOperator, digest: str) -> bool:
        """It knows that the revision is bad, and another serves."""
        failed = self._failed(operator)
        others = self._serving_now() - failed
        return digest in failed and any(self.generations.startable(other) for other in others)

    def _failed(self, operator: SimulatedOperator) -> set[str]:
        if operator.reconciler is None:
            return set()
        known = operator.reconciler.store.owned(KEY).objects.items()
        mine = sort(Owner("chat", KEY[0], self.uid), objects={p: obj for p, (obj, _) in known})
        return {own for own, stored in mine.revisions("chat").items() if stored.failed}

    def _spared_by_surge(self, pods: list[Object], labels: Object) -> bool:
        """Of another revision, and it never served: deleted at once, so the surge spares it."""
        leader = self.leader(pods)
        other = pods[0]["metadata"]["labels"][names.REVISION] != labels[names.REVISION]
        return other and (leader is None or not leader.served)

    def _deleted(self, pods: list[Object], live: Object, grace: int | None) -> None:
        leader = self.leader(pods)
        if leader is None or not leader.in_flight or leader.harmed or leader.stopping:
            return
        if grace is None:
            return  # SIGTERM is a drain, and lasts as long as ours
        text = live["metadata"].get("annotations", {}).get(names.DRAIN_DEADLINE)
        over = text is not None and self._clock.now >= (seconds(text) or 0.0)
        self._hold(over, f"{live['metadata']['name']} has requests, and its drain is not over")

    def _taken_away(self, operator: SimulatedOperator, role: str, index: int) -> None:
        """A group that serves is drained by the operator: the role's floor must remain."""
        live = self._server.find(names.KIND, "chat")
        if live is None or live["metadata"].get("deletionTimestamp"):
            return  # it is deleted, which the operator is about to hear; all is left behind
        spec = self.spec(operator)
        target = self.target(spec, operator)
        both = {"unified", "prefill"} <= {other for other, _, _ in self.groups()}
        if both and target in self._failed(operator):
            return  # back to a revision of other roles: nobody knows how many groups it had
        want, _, unavailable = self.limits(spec, role)
        missed = self.losses.missed(operator)
        serving = self.serving(spec, missed, operator).get(role, set())
        if (role, index) not in serving:
            return  # a new one without a new one of the other role serves nobody yet
        there = len(serving | self._coming(role, target))
        left = len(serving - {(role, index)})
        floor = min(there, want) - unavailable - sum(r in (role, PAIRS[role]) for r in missed)
        self._hold(left >= floor, f"{left} groups of {role} are left, and {floor} must be")

    def _coming(self, role: str, target: str) -> set[Place]:
        return {
            (role, index)
            for (other, index, _), pods in self.groups().items()
            if other == role
            and pods[0]["metadata"]["labels"][names.REVISION] == target
            and not any(_leaves(pod) for pod in pods)
        }

    # Requests -----------------------------------------------------------------------------

    def _over(self, pod: Running) -> None:
        """A process ends."""
        if pod.in_flight and not pod.harmed:
            live = self._server.find("Pod", pod.name)
            meta = live["metadata"] if live else {}
            text = (meta.get("annotations") or {}).get(names.DRAIN_DEADLINE)
            over = text is not None and self._clock.now >= (seconds(text) or 0.0)
            late = self._clock.now >= meta.get("until", 0.0)
            self._hold(over or late, f"{pod.name} ended with {pod.in_flight} requests")

    def _chosen(self, pods: list[Running]) -> None:
        self._served = True
        self.troubled = self.troubled and not self._replaced()
        pod_names = [pod.name for pod in pods]
        kinds = {pod.fingerprint for pod in pods}
        self._hold(len(kinds) == 1, f"a pair across KV formats: {pod_names}")
        self._hold(len({pod.key for pod in pods}) == 1, f"a pair across control keys: {pod_names}")
        for pod in pods:
            self._hold(bool(pod.warm), f"{pod.name} serves and was not warmed up")

    def _replaced(self) -> bool:
        """Every role has what is wanted of it, so that what was lost is lost no more."""
        parent = self._server.get(names.KIND, "chat")
        spec = parent["spec"]
        serving = self.serving(spec)
        roles = [role for role in names.ROLES if role in spec]
        return not self.losses.lately() and all(
            len(serving.get(role, ())) >= spec[role]["replicas"] for role in roles
        )

    def _unserved(self, router: SimulatedRouter) -> None:
        excused = self.lenient or self.troubled or not self._served
        self._hold(excused, f"{router.name} found no group for a request")

    def _hold(self, true: bool, text: str) -> None:
        if not true:
            raise Violation(text)


def _runs(pod: Object) -> bool:
    """It holds its place on a node, and goes on to."""
    failed = (pod.get("status") or {}).get("phase") == "Failed"
    return not failed and "deletionTimestamp" not in pod["metadata"]


def _seen(pods: list[Object]) -> bool:
    """Nobody took away the labels by which operator and routers find it."""
    return all(names.NAME in pod["metadata"]["labels"] for pod in pods)


def _leaves(pod: Object) -> bool:
    meta = pod["metadata"]
    return "deletionTimestamp" in meta or names.DRAINING in meta["labels"]
