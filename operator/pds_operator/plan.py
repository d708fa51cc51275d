"""One round: from what is observed and what is wanted to the writes that bring them closer. Pure.

Level-triggered and without memory: the plan of a crashed round, made again, goes on where it
stopped. Later issues add here: compile-first, partition, pause, automatic rollback,and
gangs.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pds_operator import diff, lifecycle, names, rollout, scaling
from pds_operator import revision as revisions
from pds_operator.actions import (
    Action,
    Apply,
    Create,
    Delete,
    MakeSecret,
    Problem,
    Round,
    Say,
    TryOut,
    object_scope,
    revision_scope,
)
from pds_operator.build import engine, router, shared
from pds_operator.build.owner import Owner
from pds_operator.errors import SpecError
from pds_operator.fleet import Group, Phase, groups
from pds_operator.observed import Observed, Revision, seconds
from pds_operator.rollout import Limits, Role, Step
from pds_operator.settings import Settings
from pds_operator.spec import PDServingSpec

Object = dict[str, Any]

HISTORY_LIMIT = 10
SCHEDULE_TIMEOUT = 300
CLAIM_PENDING_SECONDS = 60.0
PRUNED = ("PodDisruptionBudget", "NetworkPolicy")
"""Kinds of which an object that is no longer wanted is deleted."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What the user wants."""

    owner: Owner
    generation: int
    raw: Object
    spec: PDServingSpec
    settings: Settings

    @property
    def digest(self) -> str:
        """The revision that the spec asks for."""
        return revisions.digest(self.raw)


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


def plan(observed: Observed, desired: Desired, now: float) -> Plan:
    """The next round."""
    round_ = Round()
    fleet = _fleet(observed, desired)
    scaling.keep_up(round_, desired.spec, desired.owner, observed, fleet)
    spec = scaling.scaled(desired.spec, desired.owner, observed, fleet)
    desired = replace(desired, spec=spec)
    _objects(round_, observed, desired, now)
    target = _revision(round_, observed, desired)
    terms = _terms(desired)
    counts = _counts(fleet, desired, now)
    step = rollout.step(counts, _limits(desired.spec))
    retired = _retired(fleet, step, target) if target else []
    for group in retired:
        lifecycle.retire(round_, terms, group, now)
    for group in fleet:
        if group not in retired:
            lifecycle.keep_up(round_, terms, group, observed, now)
    if target is not None:
        _config_maps(round_, observed, desired, target, fleet)
        staying = [group for group in fleet if group not in retired]
        _create(round_, observed, desired, target, staying, retired, step, now)
    _history(round_, observed, desired, fleet)
    return Plan(
        actions=_allowed(round_, observed, now),
        problems=tuple(dict.fromkeys(round_.problems)),
        step=step,
        groups=tuple(fleet),
        target=desired.digest,
        wake=round_.wake,
        unsettled=round_.unsettled,
        roles=counts,
    )


def _objects(round_: Round, observed: Observed, desired: Desired, now: float) -> None:
    """Everything but pods and revisions: made, applied again where it differs, or left alone."""
    owner, spec, settings = desired.owner, desired.spec, desired.settings
    _secret(round_, observed, owner)
    pods = {role: shape.groups * shape.pods_per_group for role, shape in spec.roles.items()}
    wanted = shared.objects(owner, spec, settings, pods)
    try:
        wanted += router.objects(owner, spec, settings)
    except SpecError as error:
        round_.problems.append(Problem(error.reason, error.message))
    for obj in wanted:
        _ensure(round_, observed, obj, owner.uid)
    keep = {(obj["kind"], obj["metadata"]["name"]) for obj in wanted}
    for (kind, name), live in observed.objects.items():
        if kind in PRUNED and (kind, name) not in keep and diff.ours(live, owner.uid):
            scope = object_scope(live)
            round_.actions.append(Delete(kind, name, live["metadata"]["uid"], scope))
    _claim(round_, observed, owner, now)


def _secret(round_: Round, observed: Observed, owner: Owner) -> None:
    """Made once. When it is lost what runs still has the old keys, so no new ones are made."""
    if observed.secret:
        return
    name = names.control_secret(owner.name)
    if observed.pods or ("Deployment", names.router(owner.name)) in observed.objects:
        text = (
            f"the Secret {name} is gone, and running pods use its keys: restore it, or delete the "
            f"Deployment {names.router(owner.name)} and all pods, to have everything made anew"
        )
        round_.problems.append(Problem("SecretMissing", text))
    else:
        round_.actions.append(MakeSecret(owner.metadata(name)))


def _ensure(round_: Round, observed: Observed, obj: Object, uid: str) -> None:
    wanted = diff.stamped(obj)
    scope = object_scope(wanted)
    live = observed.objects.get((wanted["kind"], wanted["metadata"]["name"]))
    match diff.verdict(wanted, live, uid):
        case diff.Verdict.CREATE:
            round_.actions.append(Create(wanted, scope))
        case diff.Verdict.APPLY if live is not None:
            round_.actions.append(Apply(wanted, live["metadata"]["uid"], scope))
        case diff.Verdict.FOREIGN:
            text = f"{scope} exists and is not owned by this PDServing; it is left untouched"
            round_.problems.append(Problem("NameTaken", text))
        case _:
            pass


def _claim(round_: Round, observed: Observed, owner: Owner, now: float) -> None:
    live = observed.objects.get(("PersistentVolumeClaim", names.cache_claim(owner.name)))
    if live is None or (live.get("status") or {}).get("phase") != "Pending":
        return
    due = (seconds(live["metadata"].get("creationTimestamp")) or 0.0) + CLAIM_PENDING_SECONDS
    if now < due:
        round_.wake_at(due)
        return
    text = (
        f"the claim {live['metadata']['name']} is not bound: its storage class must offer the "
        "access mode (ReadWriteMany by default), or give spec.compileCache.volume another form"
    )
    round_.problems.append(Problem("CacheClaimPending", text))


def _revision(round_: Round, observed: Observed, desired: Desired) -> Revision | None:
    """The stored revision of the spec; made first, and used from the next round on.

    Another replica or version may have stored it before: pods come from what is stored.
    """
    owner, digest = desired.owner, desired.digest
    stored = observed.revisions.get(digest)
    if stored is not None:
        return stored
    try:
        data = engine.render(desired.raw, desired.spec, owner, desired.settings)
    except SpecError as error:
        round_.problems.append(Problem(error.reason, error.message))
        return None
    scope = revision_scope(digest)
    number = 1 + max((item.number for item in observed.revisions.values()), default=0)
    for role in data["roles"]:
        round_.actions.append(TryOut(engine.pod(owner, data, role, 9999, 0, 0, 0), scope))
    round_.actions.append(Create(engine.controller_revision(owner, digest, number, data), scope))
    said = f"revision {digest} (number {number}) is the target"
    round_.actions.append(Say("RevisionCreated", said, scope=scope))
    return None


def _fleet(observed: Observed, desired: Desired) -> list[Group]:
    """Our groups. A pod that carries our labels but not our owner is nobody's business of ours."""

    def size(digest: str, role: str) -> int:
        stored = observed.revisions.get(digest)
        if stored is None or role not in stored.data.get("roles", {}):
            return 1
        return engine.pods_per_group(stored.data, role)

    return groups((pod for pod in observed.pods if pod.owner == desired.owner.uid), size)


def _terms(desired: Desired) -> lifecycle.Terms:
    scheduling = desired.spec.scheduling
    timeout = scheduling.schedule_timeout_seconds if scheduling else None
    return lifecycle.Terms(
        owner=desired.owner,
        drain_seconds=engine.drain_seconds(desired.spec),
        schedule_timeout=timeout or SCHEDULE_TIMEOUT,
        probe_seconds=desired.settings.probe_seconds,
    )


def _counts(fleet: list[Group], desired: Desired, now: float) -> dict[str, Role]:
    """Each role's groups, as the arithmetic of rollouts wants them.

    An old group that has never served, or is over, is not counted: it is retired at once.
    """
    spec, digest = desired.spec, desired.digest
    held = spec.rollout.min_ready_seconds if spec.rollout else None
    roles: dict[str, Role] = {}
    present = {group.role for group in fleet if group.phase is not Phase.LEAVING}
    for name in [*spec.roles, *sorted(present - set(spec.roles))]:
        own = [group for group in fleet if group.role == name]
        staying = [group for group in own if group.phase is not Phase.LEAVING]
        new = [group for group in staying if group.revision == digest]
        old = [group for group in staying if group.revision != digest and not group.hopeless]
        roles[name] = Role(
            want=spec.roles[name].groups if name in spec.roles else 0,
            old=len(old),
            old_ready=sum(group.ready for group in old),
            new=len(new),
            new_ready=sum(group.available(now, held or 0) for group in new),
            leaving=sum(
                not all(pod.deleting for pod in group.pods)
                for group in own
                if group.phase is Phase.LEAVING
            ),
        )
    return roles


def _limits(spec: PDServingSpec) -> Limits:
    given = spec.rollout
    surge = given.max_surge if given else None
    unavailable = given.max_unavailable if given else None
    return Limits(1 if surge is None else surge, 0 if unavailable is None else unavailable)


def _retired(fleet: list[Group], step: Step, target: Revision) -> list[Group]:
    """The groups that leave now: hopeless old ones, and what each role's move retires."""
    result: list[Group] = []
    for name, move in step.moves.items():
        staying = [g for g in fleet if g.role == name and g.phase is not Phase.LEAVING]
        old = [g for g in staying if g.revision != target.digest]
        new = [g for g in staying if g.revision == target.digest]
        result += [g for g in old if g.hopeless]
        result += _least_useful([g for g in old if not g.hopeless], move.retire_old)
        result += _least_useful(new, move.retire_new)
    return result


def _least_useful(candidates: list[Group], count: int) -> list[Group]:
    """Unready ones before ready ones, then the highest index."""
    order = {Phase.FAILED: 0, Phase.STARTING: 1, Phase.EVICTED: 2}
    ranked = sorted(candidates, key=lambda g: (order.get(g.phase, 3), g.ready, -g.index))
    return ranked[:count]


def _create(
    round_: Round,
    observed: Observed,
    desired: Desired,
    target: Revision,
    staying: list[Group],
    retired: list[Group],
    step: Step,
    now: float,
) -> None:
    """Start what this step allows, one group of a role at a time.

    The next is made when this one is scheduled: groups that each hold a part of what they need,
    waiting for the rest, would wait for ever.
    """
    rolling = any(group.revision != target.digest for group in staying)
    if rolling and not _routers_settled(observed, desired):
        return
    for name, move in step.moves.items():
        own = [group for group in staying if group.role == name]
        if move.create and not observed.held(f"schedule/{name}", now) and not _unscheduled(own):
            taken = {group.index for group in [*own, *retired] if group.role == name}
            index = next(free for free in range(len(taken) + 1) if free not in taken)
            lifecycle.create(round_, _terms(desired), target, name, index)


def _unscheduled(own: list[Group]) -> bool:
    return any(
        group.phase is Phase.STARTING and (group.missing or group.unscheduled) for group in own
    )


def _routers_settled(observed: Observed, desired: Desired) -> bool:
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


def _config_maps(
    round_: Round, observed: Observed, desired: Desired, target: Revision, fleet: list[Group]
) -> None:
    """The ConfigMap of every revision that pods are, or will be, made from."""
    used = {group.revision for group in fleet} | {target.digest}
    for digest in sorted(used & set(observed.revisions)):
        stored = observed.revisions[digest]
        _ensure(
            round_,
            observed,
            engine.config_map(desired.owner, digest, stored.data),
            desired.owner.uid,
        )


def _history(round_: Round, observed: Observed, desired: Desired, fleet: list[Group]) -> None:
    """Delete revisions beyond the limit that nothing uses; the ConfigMap goes first."""
    given = desired.spec.rollout.revision_history_limit if desired.spec.rollout else None
    limit = HISTORY_LIMIT if given is None else given
    used = Counter(pod.revision for pod in observed.pods)
    unused = sorted(
        (item for item in observed.revisions.values() if item.digest != desired.digest),
        key=lambda item: item.number,
    )
    unused = [item for item in unused if not used[item.digest]]
    for stored in unused[: max(0, len(unused) - limit)]:
        name, scope = names.revision(desired.owner.name, stored.digest), "history"
        live = observed.objects.get(("ConfigMap", name))
        if live is not None and diff.ours(live, desired.owner.uid):
            round_.actions.append(Delete("ConfigMap", name, live["metadata"]["uid"], scope))
        round_.actions.append(Delete("ControllerRevision", name, stored.uid, scope))


def _allowed(round_: Round, observed: Observed, now: float) -> tuple[Action, ...]:
    """Without what is held back; what holds it back is a problem to tell."""
    for scope, failure in observed.failures.items():
        round_.problems.append(Problem(failure.reason, failure.message))
        if observed.held(scope, now):
            round_.wake_at(failure.until)
    return tuple(item for item in round_.actions if not observed.held(item.scope, now))
