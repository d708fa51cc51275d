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
    Relabel,
    TakeOver,
    object_scope,
)
from pds_operator.decide.desired import Desired
from pds_operator.decide.round import Round
from pds_operator.errors import SpecError
from pds_operator.facts.observed import seconds
from pds_operator.render import engine, router, shared

Object = dict[str, Any]

CLAIM_PENDING_SECONDS = 60.0
PRUNED = ("PodDisruptionBudget", "NetworkPolicy")
"""Kinds of which an object that is no longer wanted is deleted."""


def keep(round_: Round, desired: Desired) -> None:
    """Bring them to what is wanted."""
    owner, spec, settings = round_.owner, desired.spec, desired.settings
    pods = {role: shape.groups * shape.pods_per_group for role, shape in spec.roles.items()}
    wanted = shared.objects(owner, spec, settings, pods)
    try:
        wanted += router.objects(owner, spec, settings)
    except SpecError as error:
        round_.report(error.reason, error.message)
    for obj in wanted:
        ensure(round_, obj)
    named = {(obj["kind"], obj["metadata"]["name"]) for obj in wanted}
    for (kind, name), live in round_.observed.objects.items():
        if kind in PRUNED and (kind, name) not in named:
            scope = object_scope(live)
            round_.actions.append(Delete(kind, name, live["metadata"]["uid"], scope))
    _claim(round_)
    for pod in round_.observed.pods:
        if pod.wrong:
            scope = f"labels/{pod.name}"
            round_.actions.append(Relabel(pod.name, pod.uid, dict(pod.wrong), scope))


def ensure(round_: Round, obj: Object) -> None:
    """Make it, apply it again, or leave it alone."""
    wanted = diff.stamped(obj)
    kind, name, scope = wanted["kind"], wanted["metadata"]["name"], object_scope(wanted)
    live = round_.observed.objects.get((kind, name))
    uid = live["metadata"]["uid"] if live is not None else ""
    match diff.verdict(wanted, live):
        case diff.ObjectVerdict.CREATE:
            round_.actions.append(Create(wanted, scope))
        case diff.ObjectVerdict.APPLY:
            round_.actions.append(Apply(wanted, uid, scope))
        case diff.ObjectVerdict.TAKE_OVER:
            round_.actions.append(TakeOver(wanted, uid, scope))
        case diff.ObjectVerdict.ADOPT:
            round_.actions.append(Adopt(kind, name, uid, scope))
        case diff.ObjectVerdict.KEEP:
            pass


def _claim(round_: Round) -> None:
    name = names.cache_claim(round_.owner.name)
    live = round_.observed.objects.get(("PersistentVolumeClaim", name))
    if live is None or (live.get("status") or {}).get("phase") != "Pending":
        return
    due = (seconds(live["metadata"].get("creationTimestamp")) or 0.0) + CLAIM_PENDING_SECONDS
    if round_.now < due:
        round_.wake_at(due)
        return
    text = (
        f"the claim {live['metadata']['name']} is not bound: its storage class must offer the "
        "access mode (ReadWriteMany by default), or give spec.compileCache.volume another form"
    )
    round_.report("CacheClaimPending", text)


def config_maps(round_: Round, used: Iterable[str]) -> None:
    """The ConfigMap of every revision that pods are, or will be, made from."""
    for digest in sorted(set(used) & set(round_.observed.revisions)):
        stored = round_.observed.revisions[digest]
        wanted = engine.config_map(round_.owner, digest, stored.data)
        ensure(round_, wanted)
