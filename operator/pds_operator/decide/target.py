"""Which revision groups are brought to, and which one stands behind it (rollouts.md). Pure.

Annotations on a ControllerRevision keep what nothing shows any more afterwards:
  targeted  since when groups are brought to it, where it is not the newest (a revert, a retry)
  served    when it last stood whole: every wanted group of it available, no other left
  groups    how many of each role it then had: what is missing of them later was lost
  waited    what its rollout has used up of its progress deadline
  gave-way  which of its Jobs gave way to init containers (`compiling`)
A target that stood whole since it became the target is settled; until then it is rolled out.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pds_operator import names, schema
from pds_operator import revision as revisions
from pds_operator.decide import scaling
from pds_operator.decide.actions import (
    Annotate,
    Create,
    Delete,
    Problem,
    Recover,
    Say,
    TryOut,
)
from pds_operator.decide.actions import revision_scope as scope_of
from pds_operator.decide.desired import Desired
from pds_operator.decide.round import Round
from pds_operator.errors import RevisionMissing, SpecError
from pds_operator.facts.observed import GaveWay, Revision, Waited, rfc3339
from pds_operator.render import engine

HISTORY_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Target:
    """The revision of this round."""

    revision: Revision
    since: float
    """When it became the target, in Unix seconds."""
    good: Revision | None = None
    """The last that served, other than `revision`; None: there is none to hold on to."""
    rejected: Revision | None = None
    """The revision of the spec, where that is marked as failed and the last good one stands in."""
    fresh: bool = False
    """It has become the target just now, which is still to be written down."""
    stands_in: bool = False
    """The revision of the spec cannot be stored, and that of the spec before goes on."""

    @property
    def digest(self) -> str:
        """Of the revision."""
        return self.revision.digest

    @property
    def settled(self) -> bool:
        """It stood whole since it became the target."""
        served = self.revision.served
        return not self.fresh and served is not None and served >= self.since

    @property
    def judged(self) -> bool:
        """It may be given up: for one that stood whole, as another may be just as bad."""
        return self.rolling and self.good is not None and self.good.served is not None

    @property
    def rolling(self) -> bool:
        """It takes the place of one that served."""
        return self.good is not None and not self.settled


@dataclass(frozen=True, slots=True)
class Aim:
    """What a round brings groups to."""

    desired: Desired
    """What is asked for, as the target has it, in such numbers as its roles are scaled to."""
    target: Target | None
    """None: the spec's revision is not stored yet, and there is none before it."""
    refused: Problem | None = None
    """Why the spec's revision cannot be stored."""
    coming: bool = False
    """It is stored in this round, and the target in the next."""
    unseen: bool = False
    """Revisions that groups run may yet be found: no rollout begins before."""

    @property
    def digest(self) -> str:
        """Of the target, or of what it will be."""
        return self.target.digest if self.target else self.desired.digest

    @property
    def moving(self) -> Target | None:
        """The target, where groups may be brought to it."""
        return None if self.unseen else self.target


def aim(round_: Round) -> Aim:
    """By the revisions that are stored."""
    target = choose(round_, round_.asked.digest)
    return Aim(effective(round_, target), target)


def secure(round_: Round, aim: Aim) -> Aim:
    """Store the spec's revision where it is new; where it is refused, what was before stands in."""
    if aim.target is None:
        refused = make(round_, aim.desired)
        target = stand_in(round_) if refused else None
        desired = effective(round_, target)
        aim = Aim(desired, target, refused, coming=refused is None)
    return dataclasses.replace(aim, unseen=recover(round_))


def choose(round_: Round, digest: str) -> Target | None:
    """The target, given the revision that is asked for; None until that is stored.

    Where that has failed, the last good one is the target, and nothing is behind it: a rollback is
    neither held nor judged.
    """
    stored = round_.observed.revisions
    wanted = stored.get(digest)
    if wanted is None:
        return None
    good = _last_good(round_, wanted)
    back = bool(wanted.failed) and good is not None and good.served is not None
    revision = good if back and good is not None else wanted
    others = [r.since for r in stored.values() if r.digest != revision.digest]
    latest = max(others, default=-1.0)
    # Times are written in whole seconds: the target's must be the latest, and alone.
    fresh = revision.since <= latest
    since = float(int(max(round_.now, latest + 1))) if fresh else revision.since
    if back:
        return Target(revision, since, rejected=wanted, fresh=fresh)
    return Target(revision, since, good, fresh=fresh)


def stand_in(round_: Round) -> Target | None:
    """The target that there was: what the spec asks for now is refused, and nothing stops for it.

    None at a first start.
    """
    stored = round_.observed.revisions.values()
    newest = max(stored, key=lambda r: (r.since, r.number), default=None)
    found = choose(round_, newest.digest) if newest else None
    return dataclasses.replace(found, stands_in=True) if found else None


def effective(round_: Round, target: Target | None) -> Desired:
    """What is asked for, as the target has it, in such numbers as its roles are scaled to."""
    found = _standing_in(round_, target)
    return dataclasses.replace(found, spec=scaling.scaled(round_, found.spec))


def _standing_in(round_: Round, target: Target | None) -> Desired:
    """With the older revision's pods, where that is in the place of what is asked for."""
    asked = round_.asked
    if target is None or (target.rejected is None and not target.stands_in):
        return asked
    raw = revisions.restored(asked.raw, target.revision.data["spec"])
    for role in set(raw) & set(names.ROLES) - set(asked.raw):
        there = sum(g.role == role and g.revision == target.digest for g in round_.fleet)
        raw[role] = {**raw[role], "replicas": max(1, there)}
    try:
        return dataclasses.replace(asked, raw=raw, spec=schema.parse(raw))
    except SpecError:
        return asked  # of a version that took more: its pods are stored, and that is enough


def _last_good(round_: Round, target: Revision) -> Revision | None:
    """The revision that served last; before any has been whole, the one with most ready groups."""
    observed = round_.observed
    ready = Counter(group.revision for group in round_.fleet if group.ready)
    others = [item for item in observed.revisions.values() if item.digest != target.digest]
    known = [r for r in others if not r.failed and (r.served is not None or ready[r.digest])]
    known = [item for item in known if not observed.lost(item.key)]  # no pod of it could start
    return max(
        known, key=lambda item: (item.served or 0.0, ready[item.digest], item.number), default=None
    )


def recover(round_: Round) -> bool:
    """Look for revisions that groups run and that we do not see: somebody took their labels.

    Whether one may yet be found: it may be what served last, so that no rollout begins now.
    """
    observed, asked = round_.observed, round_.asked
    unseen = {g.revision for g in round_.fleet} - set(observed.revisions) - {asked.digest}
    undecided = False
    for digest in sorted(unseen):
        metadata = round_.owner.metadata(names.revision(round_.owner.name, digest))
        round_.actions.append(Recover(metadata, scope_of(digest)))
        failure = observed.failures.get(scope_of(digest))
        undecided = undecided or failure is None or failure.reason != RevisionMissing.reason
    return undecided


def make(round_: Round, desired: Desired) -> Problem | None:
    """Store the revision of the spec, which is the target in the next round, or say why not.

    Another replica or version may store it before: pods come from what is stored.
    """
    observed, owner, digest = round_.observed, round_.owner, desired.digest
    try:
        data = engine.render(desired.raw, desired.spec, owner, desired.settings, desired.key)
    except SpecError as error:
        problem = Problem(error.reason, error.message)
        round_.problems.append(problem)
        return problem
    scope = scope_of(digest)
    number = 1 + max((item.number for item in observed.revisions.values()), default=0)
    for role in data["roles"]:
        round_.actions.append(TryOut(engine.pod(owner, data, role, 9999, 0, 0, 0), scope))
    round_.actions.append(Create(engine.controller_revision(owner, digest, number, data), scope))
    said = f"revision {digest} (number {number}) is the target"
    round_.actions.append(Say("RevisionCreated", said, scope=scope))
    failure = observed.failures.get(scope)
    return Problem(failure.reason, failure.message) if failure else None


def note(round_: Round, target: Target, whole: Mapping[str, int]) -> None:
    """Write down that the target has become it, or that it stands whole, with how many groups.

    `whole`: groups of each role; empty while it does not.
    """
    text = json.dumps(whole, sort_keys=True)
    if target.fresh:
        notes: dict[str, str | None] = {names.TARGETED: rfc3339(target.since)}
        notes |= {names.WAITED: None, names.GAVE_WAY: None}
    elif whole and not target.settled:
        notes = {names.SERVED: rfc3339(max(round_.now, target.since)), names.GROUPS: text}
    elif whole and whole != target.revision.groups:
        notes = {names.GROUPS: text}
    else:
        return
    _annotate(round_, target.revision, notes)


def use_up(round_: Round, target: Target, waited: Waited) -> None:
    """Write down what its rollout has used up of its deadline."""
    used = {key: round(value, 3) for key, value in dataclasses.asdict(waited).items()}
    _annotate(round_, target.revision, {names.WAITED: json.dumps(used)})


def note_gave_way(round_: Round, target: Target, gave: Mapping[str, GaveWay]) -> None:
    """Write down which Jobs gave way, so that none of them is made again for this rollout."""
    notes = {name: dataclasses.asdict(one) for name, one in gave.items()}
    _annotate(round_, target.revision, {names.GAVE_WAY: json.dumps(notes, sort_keys=True)})


def reject(round_: Round, target: Target, why: str) -> None:
    """Mark the target as failed: from the next round on the last good revision is the target."""
    _annotate(round_, target.revision, {names.FAILED: why[:1000]})
    good = target.good.digest if target.good else ""
    said = f"revision {target.digest} is given up for {good}: {why}"
    scope = scope_of(target.digest)
    round_.actions.append(Say("RevisionFailed", said, warning=True, scope=scope))


def _annotate(round_: Round, revision: Revision, notes: dict[str, str | None]) -> None:
    name = names.revision(round_.owner.name, revision.digest)
    scope = scope_of(revision.digest)
    round_.actions.append(Annotate("ControllerRevision", name, revision.uid, notes, scope))


def prune(round_: Round, target: Target | None) -> None:
    """Delete revisions beyond the limit that nothing uses; the ConfigMap goes first."""
    observed, asked = round_.observed, round_.asked
    given = asked.rollout.revision_history_limit
    limit = HISTORY_LIMIT if given is None else given
    used = {pod.revision for pod in observed.pods} | {asked.digest}
    if target is not None:
        used.add(target.digest)
        if target.good is not None and not target.settled:
            used.add(target.good.digest)
    unused = sorted(
        (item for item in observed.revisions.values() if item.digest not in used),
        key=lambda item: item.number,
    )
    for stored in unused[: max(0, len(unused) - limit)]:
        name, scope = names.revision(round_.owner.name, stored.digest), "history"
        live = observed.objects.get(("ConfigMap", name))
        if live is not None:
            round_.actions.append(Delete("ConfigMap", name, live["metadata"]["uid"], scope))
        round_.actions.append(Delete("ControllerRevision", name, stored.uid, scope))
