"""The arithmetic of replacing groups step by step (rollouts.md). Pure, and without state.

Each round computes from what is observed how far the new revision has come and what may be
created and retired next; scaling, a changed spec and a revert in mid-rollout are the same
computation.

K = the most groups any role has, old or wanted. Step k is reached when every role r has
ceil(k·want_r/K) available new groups; then those of step k+1 may be created, and old groups may
leave down to what step k still needs. Two bounds always hold:
  - a group is made only where its role then has, draining ones included, at most want + surge:
    however many revisions a spec has gone through, what they left over makes room first;
  - a ready old group leaves only while ready ≥ min(groups, want) − unavailable remains.

A rollout may be held: `partition` keeps back the last steps, `paused` stays at the step that is
reached. Where it stays, scaling makes and retires groups of the revision that served before, so
that old and new together are what is wanted; rounding may add one where the surge has room, as an
old prefill needs an old decode. What has been made stays: neither takes back a step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """maxSurge and maxUnavailable, in groups or percent of each role."""

    surge: int | str = 1
    unavailable: int | str = 0
    partition: int | str = 0
    """Steps that are held back; a percentage of them rounds up."""
    paused: bool = False

    @property
    def holds(self) -> bool:
        """Whether steps may be held back."""
        return self.paused or self.partition not in (0, "0%")

    def last(self, steps: int, reached: int) -> int:
        """The step to stay at: `steps` where nothing is held."""
        last = max(0, steps - _groups(self.partition, steps, math.ceil))
        return min(last, reached) if self.paused else last

    def of(self, want: int) -> tuple[int, int]:
        """(surge, unavailable) in groups of a role that wants `want`.

        Where percentages of a small role round to nothing at all, one may be unavailable: else
        nothing could ever be replaced.
        """
        surge = _groups(self.surge, want, math.ceil)
        unavailable = _groups(self.unavailable, want, math.floor)
        return surge, unavailable if surge or unavailable else 1


@dataclass(frozen=True, slots=True)
class Role:
    """Groups of one role, those that leave already not counted in `old` and `new`."""

    want: int
    old: int = 0
    old_ready: int = 0
    new: int = 0
    new_ready: int = 0
    """Ready for minReadySeconds."""
    leaving: int = 0
    """Draining groups whose pods still run."""
    before: int = 0
    """Groups of the revision that served when it last stood whole; what is missing was lost."""


@dataclass(frozen=True, slots=True)
class Move:
    """What one role may do now."""

    create: int = 0
    retire_old: int = 0
    retire_new: int = 0
    create_old: int = 0
    """Of the revision that served before: what was lost of it, or scaling of a held rollout."""


@dataclass(frozen=True, slots=True)
class Step:
    """Step `reached` of `steps`, and the moves of each role towards the next."""

    reached: int
    steps: int
    moves: Mapping[str, Move]
    last: int = 0
    """The step to stay at; `steps` unless the rollout is held."""

    @property
    def held(self) -> bool:
        """The rollout goes no further by itself."""
        return self.last < self.steps and self.reached >= self.last


def step(roles: Mapping[str, Role], limits: RolloutLimits) -> Step:
    """How far the rollout is, and what each role may do now."""
    steps = max((max(role.want, role.old) for role in roles.values()), default=0)
    reached = _reached(roles, steps)
    paired = all(role.new_ready >= 1 for role in roles.values() if role.want)
    at = _At(reached, steps, limits.last(steps, reached), paired)
    moves = {name: _move(role, limits, at) for name, role in roles.items()}
    return Step(reached, steps, moves, at.last)


@dataclass(frozen=True, slots=True)
class _At:
    """Where the rollout stands, for all roles."""

    reached: int
    steps: int
    last: int
    paired: bool
    """The new revision has a ready group of every role: requests come to it."""

    @property
    def coming(self) -> int:
        """The step whose groups may be made."""
        return max(self.reached, min(self.reached + 1, self.last))


def _reached(roles: Mapping[str, Role], steps: int) -> int:
    for k in range(steps, 0, -1):
        if all(role.new_ready >= _share(k, role.want, steps) for role in roles.values()):
            return k
    return 0


def _move(role: Role, limits: RolloutLimits, at: _At) -> Move:
    surge, unavailable = limits.of(role.want)
    surplus = max(0, role.new - role.want)
    held = at.last < at.steps
    if role.old == 0 and not held:
        room = role.want + max(surge, surplus) - role.new - role.leaving
        missing = role.want - role.new
        return Move(create=max(0, min(missing, room)), retire_new=surplus)
    coming = min(role.want, _share(at.coming, role.want, at.steps))
    room = role.want + surge - role.old - role.new - role.leaving
    create = max(0, min(coming - role.new, room))
    keep = min(_share(at.steps - at.reached, role.want, at.steps), role.want + surge - coming)
    create_old = 0
    if held and at.reached >= at.last:
        create = 0
        create_old = max(0, min(keep - role.old, room))
    elif role.old < min(keep, role.before):  # lost while nobody looked
        create_old = max(0, min(min(keep, role.before) - role.old, room))
        create = max(0, min(create, room - create_old))
    if role.want == 0 and at.reached < at.steps:
        keep = role.old  # a role that the new revision lacks serves until the new one is whole
    # New groups count as serving only once their revision has a pair: before it, nobody is
    # routed to them.
    ready = role.old_ready + (role.new_ready if at.paired else 0)
    floor = min(role.old + role.new, role.want) - unavailable
    spare = max(0, ready - floor)
    unready = role.old - role.old_ready
    leave = max(0, role.old - max(0, keep))
    return Move(create, min(leave, unready + spare), surplus, create_old)


def _share(k: int, want: int, steps: int) -> int:
    return -(-k * want // steps) if steps else 0


def _groups(value: int | str, want: int, rounded: Callable[[float], int]) -> int:
    if isinstance(value, int):
        return value
    return rounded(int(value.removesuffix("%")) * want / 100)
