"""Whose the things are that carry our labels: the one place that decides it. Pure.

The controller's uid decides. What a round counts, changes and deletes is what our uid controls;
everything else is either waited for (a predecessor of our name, which garbage collection takes
away), adopted (our labels and no controller, as `kubectl delete --cascade=orphan` leaves them), or
a stranger's, which is left untouched.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pds_operator import names
from pds_operator.decide.actions import (
    Action,
    Adopt,
    Create,
    KeepRing,
    MakeCacheKey,
    MakeKey,
    Problem,
    TryOut,
)
from pds_operator.decide.round import Round
from pds_operator.facts.observed import Observed, Pod, Revision, RouterPod, WarmupPod
from pds_operator.facts.reading import controller, revision_facts
from pds_operator.render.owner import Owner

Object = dict[str, Any]
Place = tuple[str, str]
"""(kind, name)."""

SECRET_WAKE_SECONDS = 2.0
"""No watch reports when a Secret goes."""


MOUNTING = ("Deployment", "Pod", "Job")
"""Kinds whose pods have Secrets of ours as volumes."""
REFUSALS = 3
"""So many times an adoption is tried before the rest goes on without it."""


class Whose(Enum):
    """Whose an object is, as seen by one PDServing."""

    OURS = "ours"
    ORPHAN = "orphan"
    """Our labels, and no controller: to be adopted."""
    PREDECESSOR = "predecessor"
    """Of a PDServing of the same name that is gone: it goes as well."""
    STRANGER = "stranger"


def whose(obj: Object, owner: Owner) -> Whose:
    """Whose `obj` is. A claim without a controller is a retained one: its labels say whose."""
    labels = obj["metadata"].get("labels") or {}
    made = labels.get(names.MANAGED_BY) == names.MANAGER and labels.get(names.NAME) == owner.name
    found = _whose(*controller(obj), owner, made=made)
    if found is Whose.ORPHAN and obj.get("kind") == "PersistentVolumeClaim":
        return Whose.OURS
    return found


def controlled(obj: Object) -> bool:
    """Whether `obj` has a controller."""
    return bool(controller(obj)[1])


def _whose(what: str, uid: str, owner: Owner, *, made: bool) -> Whose:
    """`what` and `uid` are the controller's; `made`: the labels say that we made it."""
    if uid:
        if uid == owner.uid:
            return Whose.OURS
        same = what == f"{names.KIND}.{names.GROUP}/{owner.name}"
        return Whose.PREDECESSOR if same else Whose.STRANGER
    return Whose.ORPHAN if made else Whose.STRANGER


@dataclass(slots=True)
class Belongings:
    """What carries our name, sorted by whose it is."""

    pods: dict[str, Pod] = field(default_factory=dict)
    """Engine pods of ours, by name."""
    routers: list[RouterPod] = field(default_factory=list)
    warmups: list[WarmupPod] = field(default_factory=list)
    objects: dict[Place, Object] = field(default_factory=dict)
    orphans: dict[Place, str] = field(default_factory=dict)
    """To be adopted: their uids."""
    others: dict[Place, Whose] = field(default_factory=dict)
    """A predecessor's and strangers'."""
    endpoints: int = 0
    """Ready routers of ours that the endpoint's Service lists."""

    def revisions(self, pds: str) -> dict[str, Revision]:
        """The stored revisions, by digest."""
        found = (
            revision_facts(obj, pds)
            for (kind, _), obj in self.objects.items()
            if kind == "ControllerRevision"
        )
        return {item.digest: item for item in found}

    def _put(self, place: Place, uid: str, found: Whose) -> bool:
        if found is Whose.ORPHAN:
            self.orphans[place] = uid
        elif found is not Whose.OURS:
            self.others[place] = found
        return found is Whose.OURS


def sort(
    owner: Owner,
    pods: Iterable[Pod] = (),
    routers: Iterable[RouterPod] = (),
    warmups: Iterable[WarmupPod] = (),
    objects: Mapping[Place, Object] | None = None,
    sets: Mapping[str, str] | None = None,
) -> Belongings:
    """`objects` may hold the Secrets of keys, which are no objects of a round.

    sets: by the uid of a ReplicaSet, that of its controller.
    """
    found = Belongings()
    slices = []
    for place, obj in (objects or {}).items():
        if place[0] == "EndpointSlice":
            slices.append(obj)
        elif found._put(place, obj["metadata"]["uid"], whose(obj, owner)) and place[0] != "Secret":
            found.objects[place] = obj
    for pod in pods:
        theirs = _whose(pod.owned_by, pod.owner, owner, made=pod.managed)
        if found._put(("Pod", pod.name), pod.uid, theirs):
            found.pods[pod.name] = pod
    jobs = {obj["metadata"]["uid"] for (kind, _), obj in found.objects.items() if kind == "Job"}
    found.warmups = [pod for pod in warmups if pod.owner in jobs]
    for router in routers:
        _put_router(found, router, names.router(owner.name), sets or {})
    service = found.objects.get(("Service", owner.name))
    if service is not None:
        ready = {pod.name for pod in found.routers if pod.ready}
        uid = service["metadata"]["uid"]
        listed = {name for obj in slices if controller(obj)[1] == uid for name in obj["ready"]}
        found.endpoints = len(ready & listed)
    return found


def _put_router(found: Belongings, pod: RouterPod, name: str, sets: Mapping[str, str]) -> None:
    """A pod names its ReplicaSet, and that the Deployment: labels do not make a router.

    What neither knows of may be of a ReplicaSet that we have not heard of yet.
    """
    place = "Deployment", name
    live = found.objects.get(place)
    if not pod.owned_by.startswith(f"ReplicaSet.apps/{name}-"):
        found.others["Pod", pod.name] = Whose.STRANGER
    elif live is not None and sets.get(pod.owner) == live["metadata"]["uid"]:
        found.routers.append(pod)
    elif (live is None and place not in found.orphans) or (live and pod.owner in sets):
        found.others["Pod", pod.name] = Whose.PREDECESSOR


def adoptions(observed: Observed, now: float) -> list[Adopt]:
    """An orphan serves under the new owner as it did before."""
    return [
        Adopt(kind, name, uid, scope)
        for (kind, name), uid in observed.orphans.items()
        if not observed.held(scope := adopt_scope(kind, name), now)
    ]


def wait(observed: Observed, now: float) -> float:
    """Seconds until orphans are worth another try; 0: the round goes on without those left.

    Until all are adopted, revisions, groups and routers are not known: a round would make again
    what serves already. An adoption that is refused for long is reported.
    """
    scopes = [adopt_scope(kind, name) for kind, name in observed.orphans]
    failures = [observed.failures.get(scope) for scope in scopes]
    if all(failure is not None and failure.count >= REFUSALS for failure in failures):
        return 0.0
    return max(1.0, min((failure.until - now for failure in failures if failure), default=1.0))


def adopt_scope(kind: str, name: str) -> str:
    """What refusals to adopt are counted by."""
    return f"adopt/{kind}/{name}"


def yielding(round_: Round) -> None:
    """Drop actions that would make what another's object has the name of, and report why.

    As after a refusal, what follows in the same scope goes with it.
    """
    observed, owner = round_.observed, round_.owner
    taken = {*observed.others, *observed.orphans}
    blocked: dict[str, list[Place]] = {}
    for action in round_.actions:
        place = _made(action, owner)
        if place is not None and place in taken:
            blocked.setdefault(action.scope, []).append(place)
    _await_keys(round_, blocked)
    if not blocked:
        return
    kept: list[Action] = []
    met: set[str] = set()
    for action in round_.actions:
        if _made(action, owner) in blocked.get(action.scope, ()):
            met.add(action.scope)
        if action.scope in met or (action.scope in blocked and isinstance(action, TryOut)):
            continue
        kept.append(action)
    round_.actions[:] = kept
    for kind, name in dict.fromkeys(place for places in blocked.values() for place in places):
        other = observed.others.get((kind, name))
        if other is not None:
            round_.problems.append(problem(kind, name, other is Whose.PREDECESSOR))


def _await_keys(round_: Round, blocked: dict[str, list[Place]]) -> None:
    """Make no keys while a pod of a predecessor has its own, and nothing that mounts them.

    A node keeps an immutable Secret by its name for as long as any pod of it uses that: what
    starts beside such a pod would have keys that nobody else has. So would what starts while a
    Secret of a predecessor, or one that is still to be adopted, has a name of ours.
    """
    observed = round_.observed
    gone = [place for place, other in observed.others.items() if other is Whose.PREDECESSOR]
    making = any(isinstance(item, MakeKey | MakeCacheKey) for item in round_.actions)
    left = [place for place in gone if making and place[0] == "Pod"]
    meant = {place for places in blocked.values() for place in places}
    secrets = {place for place in (*gone, *observed.orphans, *meant) if place[0] == "Secret"}
    if not (left or secrets):
        return
    if secrets:
        round_.wake_at(round_.now + SECRET_WAKE_SECONDS)
    for action in round_.actions:
        place = _made(action, round_.owner)
        if place is not None and (place[0] in MOUNTING or place[0] == "Secret"):
            blocked.setdefault(action.scope, []).append(place)
    for kind, name in (*left, *sorted(secrets.intersection(gone))):
        round_.problems.append(problem(kind, name, leaving=True))


def problem(kind: str, name: str, leaving: bool) -> Problem:
    """Why an object of that name cannot be made now."""
    if leaving:
        text = (
            f"{kind} {name} belongs to a PDServing of this name that was deleted; garbage "
            "collection takes it away by itself, and then it is made anew"
        )
        if kind == "Pod":
            text += f"; where its node is gone: kubectl delete pod {name} --force"
        return Problem("PredecessorLeaving", text)
    text = (
        f"{kind} {name} exists and is not owned by this PDServing; it is left untouched: "
        "rename one of the two"
    )
    return Problem("NameTaken", text)


def _made(action: Action, owner: Owner) -> Place | None:
    """What an action makes, where its name is known: that of a later key is not, and is free."""
    match action:
        case Create(obj=obj):
            return str(obj["kind"]), str(obj["metadata"]["name"])
        case MakeKey(first=True):
            return "Secret", names.control_secret(owner.name)
        case KeepRing():
            return "Secret", names.keyring(owner.name)
        case MakeCacheKey():
            return "Secret", names.cache_key(owner.name)
    return None
