"""One round: from what is observed and what is wanted to the writes that bring them closer. Pure.

Level-triggered and without memory: the plan of a crashed round, made again, goes on where it
stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice

from pds_operator import names
from pds_operator.decide import (
    ahead,
    compiling,
    counting,
    hindrances,
    keyring,
    lifecycle,
    objects,
    ownership,
    rollout,
    scaling,
)
from pds_operator.decide import progress as progresses
from pds_operator.decide import target as targets
from pds_operator.decide.actions import Action, Problem
from pds_operator.decide.ahead import Filling
from pds_operator.decide.compiling import Warmup, WarmupState
from pds_operator.decide.counting import CountingBasis, counts, limits, whole
from pds_operator.decide.desired import Desired
from pds_operator.decide.fleet import Group, Phase, groups
from pds_operator.decide.judge import able, delay, evidence
from pds_operator.decide.rollout import Role, RolloutLimits, Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Aim, Target
from pds_operator.facts.observed import Observed, Revision, ScopeFailure, rfc3339
from pds_operator.render import engine

__all__ = ["Desired", "Plan", "counts", "limits", "plan", "routers_settled"]

SCHEDULE_TIMEOUT = 300
PASSING = ("QuotaExceeded", "LimitRange", "ApiError", "ApiUnreachable")
"""Refusals that a pod that ends, or an API server that starts, may take back in seconds."""


@dataclass(frozen=True)
class Plan:
    """One round's writes, the problems to report, and when to look again."""

    actions: tuple[Action, ...]
    problems: tuple[Problem, ...]
    step: Step
    groups: tuple[Group, ...] = ()
    target: str = ""
    wake: float | None = None
    unsettled: bool = False
    """Routers and leaders are worth asking often."""
    roles: Mapping[str, Role] = field(default_factory=dict)
    rejected: str = ""
    """The spec's revision, where it has failed and `target` stands in for it."""
    refused: Problem | None = None
    """Why what the spec asks for is no revision. What was before goes on, if there was anything."""
    overdue: str = ""
    """Why the rollout has not got on within its deadline."""
    warmup: Warmup = field(default_factory=Warmup)
    """Compiling the target before its pods are made."""
    fillings: tuple[Filling, ...] = ()
    """Compiling it for GPUs that are not there."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the rollout is: the groups of each role, and what each may do now."""

    limits: RolloutLimits
    basis: CountingBasis
    roles: Mapping[str, Role]
    step: Step

    @property
    def serves_on(self) -> bool:
        """The last groups that serve together may not leave."""
        return counting.must_serve_on(self.roles, self.limits)


def plan(observed: Observed, desired: Desired, now: float) -> Plan:
    """The next round."""
    round_ = see(observed, desired, now)
    seen = targets.aim(round_)
    keep(round_, seen)
    aim = targets.secure(round_, seen)
    standing = measure(round_, aim)
    retired = keep_up(round_, aim, standing)
    warmup, overdue = Warmup(), ""
    fillings: tuple[Filling, ...] = ()
    if aim.moving is not None:
        warmup = move(round_, aim.moving, standing, retired)
        overdue = judge(round_, aim.moving, standing, warmup)
        held = standing.step.held and aim.moving.rolling
        fillings = ahead.keep(round_, aim.moving, aim.desired, held=held)
    targets.prune(round_, aim.target)
    hindrances.look(round_)
    return Plan(
        actions=_allowed(round_),
        problems=tuple(dict.fromkeys(round_.problems)),
        step=standing.step,
        groups=round_.fleet,
        target=aim.digest,
        wake=round_.wake,
        unsettled=round_.unsettled,
        roles=standing.roles,
        rejected=aim.target.rejected.digest if aim.target and aim.target.rejected else "",
        refused=aim.refused,
        overdue=overdue,
        warmup=warmup,
        fillings=fillings,
    )


def see(observed: Observed, desired: Desired, now: float) -> Round:
    """The groups that pods make, and the control key of now."""
    asked = replace(desired, key=keyring.active(observed))

    def size(digest: str, role: str) -> int:
        stored = observed.revisions.get(digest)
        if stored is None or role not in stored.data.get("roles", {}):
            return 1
        return engine.pods_per_group(stored.data, role)

    return Round(observed, asked, now, tuple(groups(observed.pods, size)))


def keep(round_: Round, aim: Aim) -> None:
    """Everything but pods and revisions."""
    scaling.keep_up(round_)
    keyring.keep(round_, aim.target)
    objects.keep(round_, aim.desired)


def measure(round_: Round, aim: Aim) -> Standing:
    """Where the rollout stands."""
    target = aim.target
    if target is not None and target.rejected is not None:
        round_.problems.append(_rejected(round_, target, target.rejected))
    limit = limits(aim.desired, target)
    basis = CountingBasis(
        aim.digest, target, limit.holds, round_.observed.states, _lost(round_.observed)
    )
    roles = counts(round_, aim.desired, basis)
    return Standing(limit, basis, roles, rollout.step(roles, limit))


def keep_up(round_: Round, aim: Aim, standing: Standing) -> list[Group]:
    """Keep up the groups that there are; those of them that leave from now on."""
    times = _times(aim.desired)
    fleet = round_.fleet
    retired: list[Group] = []
    if aim.moving is not None:
        step, basis = standing.step, standing.basis
        retired = counting.retired(fleet, step, basis, serves_on=standing.serves_on)
    for group in retired:
        lifecycle.retire(round_, times, group)
    for group in fleet:
        # What the coming target retires in the next round is not made again in this one.
        if group not in retired and not (aim.coming and group.never_served):
            lifecycle.keep_up(round_, times, group)
    return retired


def move(round_: Round, target: Target, standing: Standing, retired: list[Group]) -> Warmup:
    """Bring groups to the target: compile it first, then make what this step allows."""
    used = {group.revision for group in round_.fleet} | {target.digest, *_good(target)}
    objects.config_maps(round_, used)
    warmup = compiling.first(round_, target, standing.step)
    _create(round_, target, standing.step, retired, hold_new=warmup.holds)
    return warmup


def judge(round_: Round, target: Target, standing: Standing, warmup: Warmup) -> str:
    """Give up a revision that shows to be bad, or note that it stands whole.

    Why the rollout is overdue, if it is.
    """
    overdue = _judge(round_, target, standing.step, warmup)
    targets.note(round_, target, whole(round_, standing.roles, target.digest))
    return overdue


def _judge(round_: Round, target: Target, step: Step, warmup: Warmup) -> str:
    busy = warmup.state is WarmupState.RUNNING and not warmup.waits
    since = progresses.last_progress(round_, target, warmup.ended)
    may = able(round_, target)
    progress = progresses.progress(round_, target, step, since, waits=not busy, able=may)
    if progress.note is not None:
        targets.use_up(round_, target, progress.note)
    given = round_.asked.rollout
    found = None if given.paused else evidence(round_, target, progress, warmup)
    if found is None and warmup.state is WarmupState.FAILED:
        # Nobody goes back from it, and no pod is made: an edit has to come.
        round_.report("WarmupFailed", warmup.message)
    if found is not None and given.auto_rollback is not False:
        targets.reject(round_, target, str(found))
    elif found is not None:
        text = f"revision {target.digest} is bad, and spec.rollout.autoRollback is false: {found}"
        round_.report("RevisionFailing", text)
    if progress.overdue(round_.now):
        return f"no progress since {rfc3339(progress.since)}: {delay(round_, target, warmup)}"
    if progress.look is not None:
        round_.wake_at(progress.look)
    return ""


def _good(target: Target) -> list[str]:
    """The revision that groups may be made of, beside the target: scaling, and what was lost."""
    return [target.good.digest] if target.good and not target.settled else []


def _rejected(round_: Round, target: Target, rejected: Revision) -> Problem:
    text = (
        f"revision {rejected.digest} of the spec has failed, and {target.digest} serves in its "
        f"place: {rejected.failed}; put the spec right, or: kubectl pds retry {round_.owner.name}"
    )
    return Problem("RevisionFailed", text)


def _times(desired: Desired) -> lifecycle.GroupTimes:
    scheduling = desired.spec.scheduling
    timeout = scheduling.schedule_timeout_seconds if scheduling else None
    return lifecycle.GroupTimes(
        drain_seconds=engine.drain_seconds(desired.spec),
        schedule_timeout=timeout or SCHEDULE_TIMEOUT,
        probe_seconds=desired.settings.probe_seconds,
    )


def _lost(observed: Observed) -> frozenset[str]:
    """The revisions whose control key's Secret is gone."""
    stored = observed.revisions.values()
    return frozenset(item.digest for item in stored if observed.lost(item.key))


def _create(
    round_: Round, target: Target, step: Step, retired: list[Group], *, hold_new: bool
) -> None:
    """Start what this step allows, the roles by turns: where nodes run out, each has its share."""
    observed = round_.observed
    staying = [group for group in round_.fleet if group not in retired]
    rolling = any(group.revision != target.digest for group in staying)
    if rolling and not routers_settled(observed, round_.owner.name):
        return
    starts: list[tuple[float, lifecycle.Start]] = []
    for name, move in step.moves.items():
        own = [group for group in staying if group.role == name]
        source = _source(target, move, hold_new=hold_new)
        if source is None or name not in source.data.get("roles", {}):
            continue
        if observed.lost(source.key):
            continue
        if observed.held(f"schedule/{name}", round_.now):
            continue
        wanted = move.create if source is target.revision else move.create_old
        taken = {group.index for group in round_.fleet if group.role == name}
        free = (index for index in count() if index not in taken)
        allowed = _may_start(own, wanted, engine.pods_per_group(source.data, name))
        starts += [
            (turn / allowed, lifecycle.Start(source, name, index))
            for turn, index in enumerate(islice(free, allowed))
        ]
    starts.sort(key=lambda item: item[0])
    lifecycle.create(round_, [start for _, start in starts])


def _source(target: Target, move: rollout.Move, *, hold_new: bool) -> Revision | None:
    """What the next group of a role is made from: first what serves is made whole again."""
    if move.create_old and target.good is not None:
        return target.good
    return target.revision if move.create and not hold_new else None


def _may_start(own: list[Group], wanted: int, pods: int) -> int:
    """How many of the `wanted` groups, of so many pods each, a role may begin now.

    Of one pod, all: what waits for a node is what a cluster's autoscaler goes by. Of several, the
    next when this one is scheduled: groups that each hold a part of what they need, waiting for
    the rest, would wait for ever.
    """
    waiting = [
        group
        for group in own
        if group.phase is Phase.STARTING and (group.missing or group.unscheduled)
    ]
    if pods == 1 and all(group.size == 1 for group in waiting):
        return wanted
    return 0 if waiting else min(wanted, 1)


def routers_settled(observed: Observed, name: str) -> bool:
    """Whether the routers of the PDServing `name` run what was last applied.

    They roll before engines do.
    """
    live = observed.objects.get(("Deployment", names.router(name)))
    if live is None:
        return False
    status = live.get("status") or {}
    replicas = live["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) >= replicas
        and status.get("replicas", 0) == status.get("updatedReplicas", 0)
    )


def _allowed(round_: Round) -> tuple[Action, ...]:
    """The actions that are not held back. What holds one back is reported as a problem.

    So is a refusal of what is tried again now, but not of what nobody asks for any more.
    """
    ownership.yielding(round_)
    observed, now = round_.observed, round_.now
    asked = {item.scope for item in round_.actions}
    for scope, failure in observed.failures.items():
        held = observed.held(scope, now)
        if held or scope in asked:
            _refusal(round_, failure)
        if held:
            round_.wake_at(failure.until)
    return tuple(item for item in round_.actions if not observed.held(item.scope, now))


def _refusal(round_: Round, failure: ScopeFailure) -> None:
    """Report it; what may pass by itself, once it lasts."""
    passing = failure.reason in PASSING
    due = failure.since + hindrances.LASTS_SECONDS if passing else round_.now
    if due > round_.now:
        round_.wake_at(due)
    else:
        round_.report(failure.reason, failure.message)
