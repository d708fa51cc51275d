"""Which revision groups are brought to, and which one stands behind it (operator.md §4). Pure.

Two annotations on a ControllerRevision keep what nothing shows any more afterwards:
  targeted  since when groups are brought to it, where it is not the newest (a revert, a retry)
  served    when it last stood whole: every wanted group of it available, no other left
A target that stood whole since it became the target is settled; until then it is rolled out.
"""

from collections import Counter
from dataclasses import dataclass

from pds_operator import diff, names
from pds_operator.actions import Annotate, Create, Delete, Problem, Round, Say, TryOut
from pds_operator.actions import revision_scope as scope_of
from pds_operator.build import engine
from pds_operator.desired import Desired
from pds_operator.errors import SpecError
from pds_operator.fleet import Group
from pds_operator.observed import Observed, Revision, rfc3339

HISTORY_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Target:
    """The revision of this round."""

    revision: Revision
    since: float
    """When it became the target, in Unix seconds."""
    good: Revision | None = None
    """The last that served, other than `revision`; None: there is none to hold on to."""
    fresh: bool = False
    """It has become the target just now, which is still to be written down."""

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
    def rolling(self) -> bool:
        """It takes the place of one that served."""
        return self.good is not None and not self.settled


def choose(observed: Observed, digest: str, fleet: list[Group], now: float) -> Target | None:
    """The target, given the revision that the spec asks for; None until that is stored."""
    wanted = observed.revisions.get(digest)
    if wanted is None:
        return None
    latest = max(item.since for item in observed.revisions.values())
    fresh = wanted.since < latest
    since = max(now, latest) if fresh else wanted.since
    return Target(wanted, since, _last_good(observed, wanted, fleet), fresh)


def _last_good(observed: Observed, target: Revision, fleet: list[Group]) -> Revision | None:
    """The revision that served last; before any has been whole, the one with most ready groups."""
    ready = Counter(group.revision for group in fleet if group.ready)
    others = [item for item in observed.revisions.values() if item.digest != target.digest]
    known = [item for item in others if item.served is not None or ready[item.digest]]
    return max(
        known, key=lambda item: (item.served or 0.0, ready[item.digest], item.number), default=None
    )


def make(round_: Round, observed: Observed, desired: Desired) -> None:
    """Store the revision of the spec; it is used from the next round on.

    Another replica or version may store it before: pods come from what is stored.
    """
    owner, digest = desired.owner, desired.digest
    try:
        data = engine.render(desired.raw, desired.spec, owner, desired.settings)
    except SpecError as error:
        round_.problems.append(Problem(error.reason, error.message))
        return
    scope = scope_of(digest)
    number = 1 + max((item.number for item in observed.revisions.values()), default=0)
    for role in data["roles"]:
        round_.actions.append(TryOut(engine.pod(owner, data, role, 9999, 0, 0, 0), scope))
    round_.actions.append(Create(engine.controller_revision(owner, digest, number, data), scope))
    said = f"revision {digest} (number {number}) is the target"
    round_.actions.append(Say("RevisionCreated", said, scope=scope))


def note(round_: Round, desired: Desired, target: Target, now: float, *, whole: bool) -> None:
    """Write down that the target has become it, or that it stands whole."""
    if target.fresh:
        key, moment = names.TARGETED, target.since
    elif whole and not target.settled:
        key, moment = names.SERVED, max(now, target.since)
    else:
        return
    annotate(round_, desired, target.revision, {key: rfc3339(moment)})


def annotate(
    round_: Round, desired: Desired, revision: Revision, notes: dict[str, str | None]
) -> None:
    """Annotate the ControllerRevision of `revision`."""
    name = names.revision(desired.owner.name, revision.digest)
    scope = scope_of(revision.digest)
    round_.actions.append(Annotate("ControllerRevision", name, revision.uid, notes, scope))


def prune(round_: Round, observed: Observed, desired: Desired, target: Target | None) -> None:
    """Delete revisions beyond the limit that nothing uses; the ConfigMap goes first."""
    given = desired.rollout.revision_history_limit
    limit = HISTORY_LIMIT if given is None else given
    used = {pod.revision for pod in observed.pods} | {desired.digest}
    if target is not None:
        used.add(target.digest)
        if target.good is not None and not target.settled:
            used.add(target.good.digest)
    unused = sorted(
        (item for item in observed.revisions.values() if item.digest not in used),
        key=lambda item: item.number,
    )
    for stored in unused[: max(0, len(unused) - limit)]:
        name, scope = names.revision(desired.owner.name, stored.digest), "history"
        live = observed.objects.get(("ConfigMap", name))
        if live is not None and diff.ours(live, desired.owner.uid):
            round_.actions.append(Delete("ConfigMap", name, live["metadata"]["uid"], scope))
        round_.actions.append(Delete("ControllerRevision", name, stored.uid, scope))
