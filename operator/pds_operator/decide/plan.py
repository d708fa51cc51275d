"""One round: from what is observed and what is wanted to the writes that bring them closer. Pure.

Level-triggered and without memory: the plan of a crashed round, made again, goes on where it
stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice

from pds_operator import names
from pds_operator.decide import (
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
from pds_operator.decide.actions import Action, Problem, Round
from pds_operator.decide.compiling import State, Warmup
from pds_operator.decide.counting import Frame, counts, limits, whole
from pds_operator.decide.desired import Desired
from pds_operator.decide.fleet import Group, Phase, groups
from pds_operator.decide.judge import able, delay, evidence
from pds_operator.decide.rollout import Role, Step
from pds_operator.decide.target import Target
from pds_operator.facts.observed import Failure, Observed, Revision, rfc3339
from pds_operator.render import engine
from pds_operator.render.owner import Owner

__all__ = ["Desired", "Plan", "counts", "limits", "plan", "routers_settled"]

SCHEDULE_TIMEOUT = 300
PASSING = ("QuotaExceeded", "LimitRange", "ApiError", "ApiUnreachable")
"""Refusals that a pod that ends, or an API server that starts, may take back in seconds."""


@dataclass(frozen=True)
class Plan:
    """One round's writes, what to tell about them, and when to look again."""

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


def plan(observed: Observed, desired: Desired, now: float) -> Plan:
    """The next round."""
    round_ = Round()
    fleet = _fleet(observed, desired)
    desired = replace(desired, key=keyring.active(observed))
    target = targets.choose(observed, desired.digest, fleet, now)
    asked, desired = desired, targets.effective(desired, target, observed, fleet)
    scaling.keep_up(round_, asked.spec, desired.owner, observed, fleet)
    keyring.keep(round_, observed, desired, target)
    objects.keep(round_, observed, desired, now)
    refused = targets.make(round_, observed, desired) if target is None else None
    coming = target is None and refused is None
    if refused:
        target = targets.stand_in(observed, fleet, now)
        desired = targets.effective(desired, target, observed, fleet)
    moving = None if targets.recover(round_, observed, asked, fleet) else target
    if target is not None and target.rejected is not None:
        round_.problems.append(_rejected(asked, target, target.rejected))
    terms = _terms(desired)
    limit = limits(desired, target)
    overdue, warmup = "", Warmup()
    digest = target.digest if target else desired.digest
    frame = Frame(digest, target, limit.holds, observed.states, _lost(observed))
    roles = counts(round_, fleet, desired, frame, now)
    step = rollout.step(roles, limit)
    on = counting.must_serve_on(roles, limit)
    retired = counting.retired(fleet, step, frame, serves_on=on) if moving else []
    for group in retired:
        lifecycle.retire(round_, terms, group, now)
    for group in fleet:
        # What the coming target retires in the next round is not made again in this one.
        if group not in retired and not (coming and group.hopeless):
            lifecycle.keep_up(round_, terms, group, observed, now)
    if moving is not None:
        used = {group.revision for group in fleet} | {digest, *_good(moving)}
        objects.config_maps(round_, observed, desired, used)
        warmup = compiling.first(round_, observed, desired, moving, step, fleet, now)
        held = warmup.holds
        _create(round_, observed, desired, moving, fleet, retired, step, now, hold_new=held)
        overdue = _judge(round_, observed, desired, moving, step, fleet, warmup, now)
        targets.note(round_, desired, moving, now, whole(fleet, roles, digest, now))
    targets.prune(round_, observed, asked, target)
    hindrances.look(round_, observed, fleet, now)
    return Plan(
        actions=_allowed(round_, observed, desired.owner, now),
        problems=tuple(dict.fromkeys(round_.problems)),
        step=step,
        groups=tuple(fleet),
        target=digest,
        wake=round_.wake,
        unsettled=round_.unsettled,
        roles=roles,
        rejected=target.rejected.digest if target and target.rejected else "",
        refused=refused,
        overdue=overdue,
        warmup=warmup,
    )


def _judge(
    round_: Round,
    observed: Observed,
    desired: Desired,
    target: Target,
    step: Step,
    fleet: list[Group],
    warmup: Warmup,
    now: float,
) -> str:
    """Give up a revision that shows to be bad; why the rollout is overdue, if it is."""
    busy = warmup.state is State.RUNNING and not warmup.waits
    own = [g for g in fleet if g.revision == target.digest and g.phase is not Phase.LEAVING]
    progress = progresses.progress(
        desired,
        target,
        step,
        progresses.last_progress(desired, target, fleet, warmup.ended),
        now,
        waits=not busy,
        able=able(observed, target, own),
    )
    if progress.note is not None:
        targets.use_up(round_, desired, target, progress.note)
    found = evidence(observed, target, progress, warmup, fleet, now)
    if desired.rollout.paused:
        found = None
    if found is None and warmup.state is State.FAILED:
        # Nobody goes back from it, and no pod is made: an edit has to come.
        round_.problems.append(Problem("WarmupFailed", warmup.message))
    if found is not None and desired.rollout.auto_rollback is not False:
        targets.reject(round_, desired, target, str(found))
    elif found is not None:
        text = f"revision {target.digest} is bad, and spec.rollout.autoRollback is false: {found}"
        round_.problems.append(Problem("RevisionFailing", text))
    if progress.overdue(now):
        why = delay(observed, target, fleet, warmup)
        return f"no progress since {rfc3339(progress.since)}: {why}"
    if progress.look is not None:
        round_.wake_at(progress.look)
    return ""


def _good(target: Target) -> list[str]:
    """The revision that groups may be made of, beside the target: scaling, and what was lost."""
    return [target.good.digest] if target.good and not target.settled else []


def _rejected(asked: Desired, target: Target, rejected: Revision) -> Problem:
    text = (
        f"revision {rejected.digest} of the spec has failed, and {target.digest} serves in its "
        f"place: {rejected.failed}; put the spec right, or: kubectl pds retry {asked.owner.name}"
    )
    return Problem("RevisionFailed", text)


def _fleet(observed: Observed, desired: Desired) -> list[Group]:
    """Our groups."""

    def size(digest: str, role: str) -> int:
        stored = observed.revisions.get(digest)
        if stored is None or role not in stored.data.get("roles", {}):
            return 1
        return engine.pods_per_group(stored.data, role)

    return groups(observed.pods, size)


def _terms(desired: Desired) -> lifecycle.Terms:
    scheduling = desired.spec.scheduling
    timeout = scheduling.schedule_timeout_seconds if scheduling else None
    return lifecycle.Terms(
        owner=desired.owner,
        drain_seconds=engine.drain_seconds(desired.spec),
        schedule_timeout=timeout or SCHEDULE_TIMEOUT,
        probe_seconds=desired.settings.probe_seconds,
    )


def _lost(observed: Observed) -> frozenset[str]:
    """The revisions whose control key's Secret is gone."""
    stored = observed.revisions.values()
    return frozenset(item.digest for item in stored if observed.lost(item.key))


def _create(
    round_: Round,
    observed: Observed,
    desired: Desired,
    target: Target,
    fleet: list[Group],
    retired: list[Group],
    step: Step,
    now: float,
    *,
    hold_new: bool,
) -> None:
    """Start what this step allows, the roles by turns: where nodes run out, each has its share."""
    staying = [group for group in fleet if group not in retired]
    rolling = any(group.revision != target.digest for group in staying)
    if rolling and not routers_settled(observed, desired):
        return
    starts: list[tuple[float, lifecycle.Start]] = []
    for name, move in step.moves.items():
        own = [group for group in staying if group.role == name]
        source = _source(target, move, hold_new=hold_new)
        if source is None or name not in source.data.get("roles", {}):
            continue
        if observed.lost(source.key):
            continue
        if observed.held(f"schedule/{name}", now):
            continue
        wanted = move.create if source is target.revision else move.create_old
        taken = {group.index for group in fleet if group.role == name}
        free = (index for index in count() if index not in taken)
        allowed = _may_start(own, wanted, engine.pods_per_group(source.data, name))
        starts += [
            (turn / allowed, lifecycle.Start(source, name, index))
            for turn, index in enumerate(islice(free, allowed))
        ]
    starts.sort(key=lambda item: item[0])
    lifecycle.create(round_, _terms(desired), [start for _, start in starts])


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


def routers_settled(observed: Observed, desired: Desired) -> bool:
    """Whether the routers run what was last applied: they roll before engines do."""
    live = observed.objects.get(("Deployment", names.router(desired.owner.name)))
    if live is None:
        return False
    status = live.get("status") or {}
    replicas = live["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) >= replicas
        and status.get("replicas", 0) == status.get("updatedReplicas", 0)
    )


def _allowed(round_: Round, observed: Observed, owner: Owner, now: float) -> tuple[Action, ...]:
    """Without what is held back; what holds it back is a problem to tell.

    So is what was refused and is tried again now, but not what nobody asks for any more.
    """
    ownership.yielding(round_, observed, owner, now)
    asked = {item.scope for item in round_.actions}
    for scope, failure in observed.failures.items():
        held = observed.held(scope, now)
        if held or scope in asked:
            _refusal(round_, failure, now)
        if held:
            round_.wake_at(failure.until)
    return tuple(item for item in round_.actions if not observed.held(item.scope, now))


def _refusal(round_: Round, failure: Failure, now: float) -> None:
    """Tell it; what may pass by itself, once it lasts."""
    due = failure.since + hindrances.LASTS_SECONDS if failure.reason in PASSING else now
    if due > now:
        round_.wake_at(due)
    else:
        round_.problems.append(Problem(failure.reason, failure.message))
