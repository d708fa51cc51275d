"""Everything but pods and revisions: made, applied again where it differs, or left alone. Pure."""

from collections.abc import Iterable
from typing import Any

from pds_operator import names
from pds_operator.decide import diff
from pds_operator.decide.actions import (
    Adopt,
    Apply,
    Create,
    Delete,
    Problem,
    Relabel,
    Round,
    TakeOver,
    object_scope,
)
from pds_operator.decide.desired import Desired
from pds_operator.errors import SpecError
from pds_operator.facts.observed import Observed, seconds
from pds_operator.render import engine, router, shared
from pds_operator.render.owner import Owner

Object = dict[str, Any]

CLAIM_PENDING_SECONDS = 60.0
PRUNED = ("PodDisruptionBudget", "NetworkPolicy")
"""Kinds of which an object that is no longer wanted is deleted."""


def keep(round_: Round, observed: Observed, desired: Desired, now: float) -> None:
    """Bring them to what is wanted."""
    owner, spec, settings = desired.owner, desired.spec, desired.settings
    pods = {role: shape.groups * shape.pods_per_group for role, shape in spec.roles.items()}
    wanted = shared.objects(owner, spec, settings, pods)
    try:
        wanted += router.objects(owner, spec, settings)
    except SpecError as error:
        round_.problems.append(Problem(error.reason, error.message))
    for obj in wanted:
        ensure(round_, observed, obj)
    named = {(obj["kind"], obj["metadata"]["name"]) for obj in wanted}
    for (kind, name), live in observed.objects.items():
        if kind in PRUNED and (kind, name) not in named:
            scope = object_scope(live)
            round_.actions.append(Delete(kind, name, live["metadata"]["uid"], scope))
    _claim(round_, observed, owner, now)
    for pod in observed.pods:
        if pod.wrong:
            scope = f"labels/{pod.name}"
            round_.actions.append(Relabel(pod.name, pod.uid, dict(pod.wrong), scope))


def ensure(round_: Round, observed: Observed, obj: Object) -> None:
    """Make it, apply it again, or leave it alone."""
    wanted = diff.stamped(obj)
    kind, name, scope = wanted["kind"], wanted["metadata"]["name"], object_scope(wanted)
    live = observed.objects.get((kind, name))
    uid = live["metadata"]["uid"] if live is not None else ""
    match diff.verdict(wanted, live):
        case diff.Verdict.CREATE:
            round_.actions.append(Create(wanted, scope))
        case diff.Verdict.APPLY:
            round_.actions.append(Apply(wanted, uid, scope))
        case diff.Verdict.TAKE_OVER:
            round_.actions.append(TakeOver(wanted, uid, scope))
        case diff.Verdict.ADOPT:
            round_.actions.append(Adopt(kind, name, uid, scope))
        case diff.Verdict.KEEP:
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


def config_maps(round_: Round, observed: Observed, desired: Desired, used: Iterable[str]) -> None:
    """The ConfigMap of every revision that pods are, or will be, made from."""
    for digest in sorted(set(used) & set(observed.revisions)):
        stored = observed.revisions[digest]
        wanted = engine.config_map(desired.owner, digest, stored.data)
        ensure(round_, observed, wanted)
