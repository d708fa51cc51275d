"""What an edit would do, by the planner itself: `kubectl pds plan -f FILE`. Pure.

From the counts of now every created group turns ready and every leaving one is gone by the next
round. What cannot be foreseen (nodes, failures, long drains) is not in it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pds_operator import schema
from pds_operator.decide import compiling, counting, keyring, rollout
from pds_operator.decide import target as targets
from pds_operator.decide.counting import CountingBasis, counts
from pds_operator.decide.desired import Desired
from pds_operator.decide.fleet import groups
from pds_operator.decide.rollout import Move, Role, RolloutLimits
from pds_operator.decide.round import Round
from pds_operator.errors import SpecError
from pds_operator.facts.observed import Observed, Pod, Revision
from pds_operator.render import engine, router
from pds_operator.render.owner import Owner
from pds_operator.revision import affecting, digest
from pds_operator.settings import PodDefaults, Settings

Object = dict[str, Any]
MOST = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Existing:
    """What there is of a PDServing; all of it empty where it is new."""

    pods: Sequence[Pod] = ()
    stored: Mapping[str, Revision] = dataclasses.field(default_factory=dict)
    children: Mapping[tuple[str, str], Object] = dataclasses.field(default_factory=dict)
    """Its PDServingRoles, as `Observed.objects` has them."""
    spec: Object = dataclasses.field(default_factory=dict)
    """What is asked for now."""


def preview(name: str, raw: Object, existing: Existing, now: float) -> list[str]:
    """Lines for people: the revision, and each round until nothing is left to do.

    Raises:
        SpecError: `raw` is no spec, or asks for what no operator makes. What only the settings of
            this one forbid is not known here.
    """
    stored, pods = existing.stored, existing.pods
    key = keyring.active(Observed(revisions=stored))
    wanted = digest(raw, key)
    new = Revision(wanted, 1 + max((r.number for r in stored.values()), default=0), "", {}, "", now)
    known = {wanted: dataclasses.replace(new, data={"spec": affecting(raw), "key": key}), **stored}
    owner, settings = Owner(name, "", ""), Settings(pod_defaults=PodDefaults(allow_host_path=True))
    asked = Desired(owner, 0, raw, schema.parse(raw), settings)
    data = engine.render(raw, asked.spec, owner, settings)
    observed = Observed(revisions=known, objects=existing.children)
    fleet = tuple(groups(pods, _size))
    round_ = Round(observed, asked, now, fleet)
    target = targets.choose(round_, wanted)
    if target is None:
        return []
    desired = targets.effective(round_, target)
    limits = counting.limits(desired, target)
    basis = CountingBasis(target.digest, target, limits.holds)
    roles = counts(round_, desired, basis)
    compiles = not round_.staying(wanted) and bool(compiling.wanted(round_, target, data))
    first = ["     a Job compiles, before any pod of it is made"] if compiles else []
    head = [*_head(target, wanted in stored), *_routers(asked, existing), *first]
    return [*head, *rounds(roles, limits)]


def rounds(roles: Mapping[str, Role], limits: RolloutLimits) -> list[str]:
    """Each round's creations and retirements, numbered, and where it ends.

    Each round begins once what the one before has begun is done; the first one, once what is under
    way already is.
    """
    lines: list[str] = []
    number = 0
    for _ in range(MOST):
        step = rollout.step(roles, limits)
        said = [text for name, move in step.moves.items() for text in _said(name, move)]
        waits = [text for name, role in roles.items() for text in _awaited(name, role)]
        if not said and waits:
            lines.append(f"     under way: {', '.join(waits)}")
            roles = {name: _settled(role) for name, role in roles.items()}
            continue
        if not said:
            end = f"held at step {step.last} of {step.steps}" if step.held else "nothing left to do"
            return [*lines, end]
        number += 1
        lines.append(f"{number:3}. {', '.join(said)}")
        roles = {name: _after(role, step.moves[name]) for name, role in roles.items()}
    return lines


def _size(revision: str, role: str) -> int:
    return 1  # a group of several pods is counted by those that exist


def _head(target: targets.Target, stored: bool) -> list[str]:
    if target.rejected is not None:
        failed = f"revision {target.rejected.digest} has failed: {target.rejected.failed}"
        return [failed, f"target   {target.digest}, the last good one"]
    if target.good is None or target.settled:
        return [f"target   {target.digest}" + ("" if stored else ", new")]
    kind = "stored" if stored else "new"
    return [f"target   {target.digest}, {kind}; {target.good.digest} served last"]


def _routers(desired: Desired, existing: Existing) -> list[str]:
    """They are replaced by their Deployment, before any engine is."""
    if not existing.spec:
        return []
    try:
        old = _template(dataclasses.replace(desired, spec=schema.parse(existing.spec)))
    except SpecError:
        return []  # what is asked for now is none, and runs nowhere
    return ["     routers are replaced first"] if old != _template(desired) else []


def _template(desired: Desired) -> Object:
    made = router.objects(desired.owner, desired.spec, desired.settings)
    [deployment] = [obj for obj in made if obj["kind"] == "Deployment"]
    return dict(deployment["spec"]["template"])


def _said(name: str, move: Move) -> list[str]:
    counts = (
        ("create", move.create, "new"),
        ("create", move.create_old, "old"),
        ("drain", move.retire_old, "old"),
        ("drain", move.retire_new, "new"),
    )
    return [f"{verb} {count} {age} {name}" for verb, count, age in counts if count]


def _awaited(name: str, role: Role) -> list[str]:
    """What is under way. A group that serves and is not ready may stay so: it is not waited for."""
    lines = []
    if role.new > role.new_ready:
        lines.append(f"{role.new - role.new_ready} new {name} not serving yet")
    if role.leaving:
        lines.append(f"{role.leaving} {name} drain")
    return lines


def _settled(role: Role) -> Role:
    return dataclasses.replace(role, new_ready=role.new, leaving=0)


def _after(role: Role, move: Move) -> Role:
    unready = role.old - role.old_ready
    old = role.old - move.retire_old + move.create_old
    new = role.new + move.create - move.retire_new
    return dataclasses.replace(
        role,
        old=old,
        old_ready=old - max(0, unready - move.retire_old),
        new=new,
        new_ready=new,
        leaving=0,
    )
