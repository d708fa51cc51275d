"""What the arithmetic of rollouts is told of the groups, and which of them leave. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pds_operator import pairs
from pds_operator.actions import Round
from pds_operator.desired import Desired
from pds_operator.fleet import Group, Phase
from pds_operator.observed import EngineState
from pds_operator.rollout import Limits, Role, Step
from pds_operator.target import Target


@dataclass(frozen=True)
class Frame:
    """What groups are counted against."""

    digest: str
    """The target's."""
    target: Target | None = None
    """None until it is stored."""
    holds: bool = False
    """The rollout may be held: the revision that served goes on in full."""
    states: Mapping[str, EngineState] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    """Revisions whose control key's Secret is gone: no pod of them can start."""

    @property
    def kept(self) -> str:
        """The revision that a held rollout goes on with."""
        return self.target.good.digest if self.holds and self.target and self.target.good else ""

    def useless(self, group: Group) -> bool:
        """An old group that has never served, or is over: retired at once, and not counted.

        Not of the revision that serves where it was made in place of one that was lost. What is
        down without the Secret of its key stays down.
        """
        if group.revision in self.lost and group.phase is not Phase.UP:
            return True
        good = self.target.good if self.target else None
        if good is None or group.revision != good.digest or not group.hopeless:
            return group.hopeless
        again = self.target is not None and group.born > self.target.since
        return not self.holds and not again

    def before(self, role: str) -> int:
        """Groups that the revision that served had when it last stood whole."""
        good = self.target.good if self.target else None
        return good.groups.get(role, 0) if good is not None else 0


def counts(
    round_: Round, fleet: list[Group], desired: Desired, frame: Frame, now: float
) -> dict[str, Role]:
    """Each role's groups, as the arithmetic of rollouts wants them.

    A new group counts as ready with a partner of its KV format: without one it serves nobody.
    """
    spec = desired.spec
    held = desired.rollout.min_ready_seconds or 0
    roles: dict[str, Role] = {}
    present = {group.role for group in fleet if group.phase is not Phase.LEAVING}
    wants = {name: shape.groups for name, shape in spec.roles.items()}
    matching = pairs.matching(fleet, frame.states)
    for name in [*wants, *sorted(present - set(wants))]:
        own = [group for group in fleet if group.role == name]
        staying = [group for group in own if group.phase is not Phase.LEAVING]
        new = [group for group in staying if group.revision == frame.digest]
        old = [g for g in staying if g.revision != frame.digest and not frame.useless(g)]
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
            before=frame.before(name),
        )
    return roles


def whole(fleet: list[Group], roles: Mapping[str, Role], digest: str, now: float) -> dict[str, int]:
    """Groups of each role, once all of the target are available and no others left; else nothing.

    Pods that are stuck on a dead node count as gone.
    """
    wants = {name: role.want for name, role in roles.items() if role.want}
    there = all(role.new_ready >= role.want for role in roles.values())
    alone = all(group.revision == digest or group.stuck(now) for group in fleet)
    return wants if there and alone else {}


def limits(desired: Desired, target: Target | None) -> Limits:
    """Steps are held back only while a revision that served can go on."""
    given = desired.rollout
    rolling = target is not None and target.rolling
    return Limits(
        surge=1 if given.max_surge is None else given.max_surge,
        unavailable=given.max_unavailable or 0,
        partition=(given.partition or 0) if rolling else 0,
        paused=bool(given.paused) and rolling,
    )


def retired(fleet: list[Group], step: Step, frame: Frame) -> list[Group]:
    """The groups that leave now: useless old ones, and what each role's move retires."""
    result: list[Group] = []
    ready = _pairs(fleet, frame.states)
    for name, move in step.moves.items():
        staying = [g for g in fleet if g.role == name and g.phase is not Phase.LEAVING]
        old = [g for g in staying if g.revision != frame.digest]
        new = [g for g in staying if g.revision == frame.digest]
        useful = [g for g in old if not frame.useless(g)]
        result += [g for g in old if frame.useless(g)]
        result += _least_useful(useful, move.retire_old, ready, frame)
        result += _least_useful(new, move.retire_new, ready, frame)
    return result


def _pairs(fleet: list[Group], states: Mapping[str, EngineState]) -> dict[str, int]:
    """Ready pairs of each revision: those of two revisions may not work with each other."""
    ready = Counter((group.revision, group.role) for group in pairs.matching(fleet, states))
    return {
        own: ready[own, "unified"] + min(ready[own, "prefill"], ready[own, "decode"])
        for own in {group.revision for group in fleet}
    }


def _least_useful(
    candidates: list[Group], count: int, ready: Mapping[str, int], frame: Frame
) -> list[Group]:
    """Unready ones before ready ones; of the revision with fewest pairs, in all roles the same.

    Of unready ones those last that run and whose gate is open: they may be ready unheard. Of as
    many pairs those go first that no pod can join any more, and last those that served last.
    """
    good = frame.target.good.digest if frame.target and frame.target.good else ""
    order = {Phase.FAILED: 0, Phase.STARTING: 1, Phase.EVICTED: 2}

    def rank(group: Group) -> tuple[int, bool, bool, int, bool, bool, str, int]:
        phase, own = order.get(group.phase, 3), group.revision
        gate = bool(group.leader and group.leader.routable)
        nearly = gate and all(pod.containers_ready for pod in group.pods)
        worth = ready[own], own not in frame.lost, own == good
        return phase, group.ready, nearly, *worth, own, -group.index

    return sorted(candidates, key=rank)[:count]
