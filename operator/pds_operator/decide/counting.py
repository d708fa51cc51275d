"""Groups, counted for the arithmetic of rollouts; and which of them leave. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pds_operator.decide import pairs
from pds_operator.decide.desired import Desired
from pds_operator.decide.fleet import Group, Phase
from pds_operator.decide.rollout import Role, RolloutLimits, Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import LeaderState


@dataclass(frozen=True)
class CountingBasis:
    """What groups are counted against."""

    digest: str
    """The target's."""
    target: Target | None = None
    """None until it is stored."""
    holds: bool = False
    """The rollout may be held: the revision that served goes on in full."""
    states: Mapping[str, LeaderState] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    """Revisions whose control key's Secret is gone: no pod of them can start."""

    @property
    def kept(self) -> str:
        """The revision that a held rollout goes on with."""
        return self.target.good.digest if self.holds and self.target and self.target.good else ""

    def leaves_at_once(self, group: Group) -> bool:
        """An old group that has never served, or is over: retired at once, and not counted.

        Not of the revision that serves where it was made in place of one that was lost. What is
        down without the Secret of its key stays down.
        """
        if group.revision in self.lost and group.phase is not Phase.UP:
            return True
        good = self.target.good if self.target else None
        if good is None or group.revision != good.digest or not group.never_served:
            return group.never_served
        again = self.target is not None and group.born > self.target.since
        return not self.holds and not again

    def before(self, role: str) -> int:
        """Groups that the revision that served had when it last stood whole."""
        good = self.target.good if self.target else None
        return good.groups.get(role, 0) if good is not None else 0


def counts(round_: Round, desired: Desired, basis: CountingBasis) -> dict[str, Role]:
    """Each role's groups, as the arithmetic of rollouts wants them.

    A new group counts as ready once it is known to have a partner of its KV format: without one it
    serves nobody.
    """
    spec, fleet, now = desired.spec, round_.fleet, round_.now
    held = desired.rollout.min_ready_seconds or 0
    roles: dict[str, Role] = {}
    present = {group.role for group in fleet if group.phase is not Phase.LEAVING}
    wants = {name: shape.groups for name, shape in spec.roles.items()}
    matching = pairs.matching(_known(fleet, basis.states), basis.states)
    for name in [*wants, *sorted(present - set(wants))]:
        own = [group for group in fleet if group.role == name]
        staying = [group for group in own if group.phase is not Phase.LEAVING]
        new = [group for group in staying if group.revision == basis.digest]
        old = [g for g in staying if g.revision != basis.digest and not basis.leaves_at_once(g)]
        for group in new:
            due = group.available_at(held)
            if due is not None and due > now:
                round_.wake_at(due)
        alone = not wants.get(pairs.PARTNER.get(name, ""))
        paired = [group for group in new if alone or group in matching]
        roles[name] = Role(
            want=wants.get(name, 0),
            old=len(old),
            old_ready=sum(group.ready for group in old),
            new=len(new),
            new_ready=sum(group.available(now, held) for group in paired),
            leaving=sum(
                not all(pod.deleting for pod in group.pods)
                for group in own
                if group.phase is Phase.LEAVING
            ),
            before=basis.before(name),
        )
    return roles


def _known(fleet: Iterable[Group], states: Mapping[str, LeaderState]) -> list[Group]:
    """Those whose leaders have reported what they pair with; all, where nobody can be asked.

    An answer that is late may say that a new revision's groups do not pair, when old ones are gone.
    """
    return [g for g in fleet if not states or (g.leader and g.leader.name in states)]


def whole(round_: Round, roles: Mapping[str, Role], digest: str) -> dict[str, int]:
    """Groups of each role, once all of the target are available and no others left; else nothing.

    Pods that are stuck on a dead node count as gone.
    """
    wants = {name: role.want for name, role in roles.items() if role.want}
    there = all(role.new_ready >= role.want for role in roles.values())
    alone = all(group.revision == digest or group.stuck(round_.now) for group in round_.fleet)
    return wants if there and alone else {}


def limits(desired: Desired, target: Target | None) -> RolloutLimits:
    """Steps are held back only while a revision that served can go on."""
    given = desired.rollout
    rolling = target is not None and target.rolling
    return RolloutLimits(
        surge=1 if given.max_surge is None else given.max_surge,
        unavailable=given.max_unavailable or 0,
        partition=(given.partition or 0) if rolling else 0,
        paused=bool(given.paused) and rolling,
    )


def retired(
    fleet: Sequence[Group], step: Step, basis: CountingBasis, *, serves_on: bool
) -> list[Group]:
    """The groups that leave now: old ones that never served, and what each role's move retires.

    serves_on: the last of those that serve together stay. Groups that several revisions have left
    over may be ready in every role, and not pair.
    """
    staying = [group for group in fleet if group.phase is not Phase.LEAVING]
    old = [group for group in staying if group.revision != basis.digest]
    at_once = [group for group in old if basis.leaves_at_once(group)]
    left = [group for group in staying if group not in at_once]
    serves_on = serves_on and pairs.serves(left, basis.states)
    result = [*at_once]
    for name, move in step.moves.items():
        if not (move.retire_old or move.retire_new):
            continue
        own = _by_use([group for group in left if group.role == name], fleet, basis)
        of_old = [group for group in own if group.revision != basis.digest]
        of_new = [group for group in own if group.revision == basis.digest]
        for candidates, count in ((of_old, move.retire_old), (of_new, move.retire_new)):
            for group in candidates:
                if not count:
                    break
                rest = [other for other in left if other is not group]
                if not serves_on or pairs.serves(rest, basis.states):
                    result.append(group)
                    left, count = rest, count - 1
    return result


def must_serve_on(roles: Mapping[str, Role], limits: RolloutLimits) -> bool:
    """Whether a rollout must not interrupt the service: no role may be without a group."""
    wants = {name: role.want for name, role in roles.items()}
    needed = ("unified",) if wants.get("unified") else ("prefill", "decode")
    return all(limits.of(wants.get(name, 0))[1] < wants.get(name, 0) for name in needed)


def _pairs(fleet: Sequence[Group], states: Mapping[str, LeaderState]) -> dict[str, int]:
    """Ready pairs of each revision: those of two revisions may not work with each other."""
    ready = Counter((group.revision, group.role) for group in pairs.matching(fleet, states))
    return {
        own: ready[own, "unified"] + min(ready[own, "prefill"], ready[own, "decode"])
        for own in {group.revision for group in fleet}
    }


def _by_use(groups: list[Group], fleet: Sequence[Group], basis: CountingBasis) -> list[Group]:
    """Those that serve last, and before them those that are ready and have no partner.

    What runs and has an open gate counts as ready here: its watch may be late. Of the groups that
    serve, those of the revision with fewest pairs go first, in all roles the same. The revision
    that served last stays longer than its equals, and one that no pod can join any more goes
    before them.
    """
    good = basis.target.good.digest if basis.target and basis.target.good else ""
    order = {Phase.FAILED: 0, Phase.STARTING: 1, Phase.EVICTED: 2}
    serving = {(group.role, group.index) for group in pairs.serving(fleet, basis.states)}
    count = _pairs(fleet, basis.states)

    def rank(group: Group) -> tuple[bool | int | str, ...]:
        phase, own = order.get(group.phase, 3), group.revision
        gate = bool(group.leader and group.leader.routable)
        ready = group.ready or (gate and all(pod.containers_ready for pod in group.pods))
        serves = (group.role, group.index) in serving
        worth = serves * count[own], own == good, group.ready, count[own], own not in basis.lost
        return serves, ready, phase, *worth, own, -group.index

    return sorted(groups, key=rank)
