"""Writes that look before or after: whose an object is, who owns its fields, what came of it.

Each is safe to repeat: what a crash leaves in between is what the next round sees and goes on from.
"""

from typing import Any

from pds_operator import errors, names
from pds_operator.decide import diff, ownership
from pds_operator.decide.ownership import Whose
from pds_operator.facts import fields
from pds_operator.facts.reading import place_labels
from pds_operator.render import gang
from pds_operator.render.owner import Owner
from pds_operator.run import api
from pds_operator.run.api import Api
from pds_operator.run.cluster import Store

Object = dict[str, Any]

UNFOLLOWED = ("Secret", "Event", gang.KIND)
TRIES = 3
"""To write on what was just read: controllers write beside us when an object is new."""


class Writer:
    """The API and the store, which sees what was written."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api, self._store = api, store

    async def create(self, obj: Object, owner: Owner) -> None:
        """POST. What is there already and ours is mended; else the name is taken.

        Raises:
            NameTaken: the object of that name is a stranger's, or a predecessor's, which goes.
        """
        kind, meta = obj["kind"], obj["metadata"]
        try:
            made = await self._api.create(obj)
        except errors.Conflict as error:
            if error.api_reason != "AlreadyExists":
                raise
        except errors.Missing as error:
            if kind != gang.KIND:
                raise
            raise errors.GangUnknown(
                f"there is no {obj['apiVersion']} {kind} in this cluster: install the scheduler "
                "that spec.scheduling.gang names, or leave gang out"
            ) from error
        else:
            if diff.changes(obj):
                made = await self._move(obj, {**made, "kind": kind}, anew=True)
            self.seen(made, kind)
            return
        live = await self._api.get(api.kind_of(obj), meta["namespace"], meta["name"])
        live["kind"] = kind
        await self._found(obj, live, owner)

    async def _found(self, wanted: Object, live: Object, owner: Owner) -> None:
        """`live` has the name, and no watch reported it: labels were changed, or we heard late."""
        kind, meta = wanted["kind"], wanted["metadata"]
        whose = ownership.whose(live, owner)
        if whose is Whose.ORPHAN:
            await self.adopt(kind, meta["name"], live["metadata"]["uid"], owner)
            return
        if whose is not Whose.OURS:
            problem = ownership.problem(kind, meta["name"], whose is Whose.PREDECESSOR)
            raise errors.NameTaken(problem.message, reason=problem.reason)
        right = meta.get("labels") or {}
        if kind == "Pod":
            right = {**right, **(place_labels(live, owner.name) or {})}
        there = live["metadata"].get("labels") or {}
        wrong = {key: value for key, value in right.items() if there.get(key) != value}
        ours = any(key.startswith(f"{names.GROUP}/") for key in wrong)
        if not ours or kind in UNFOLLOWED:  # which are read by their names
            self.seen(live, kind)
            return
        uid = live["metadata"]["uid"]
        if diff.changes(wanted):
            await self.apply(wanted, uid)
        else:
            await self.label(kind, meta["name"], uid, wrong, owner)

    async def label(
        self, kind: str, name: str, uid: str, labels: dict[str, str], owner: Owner
    ) -> None:
        """Restore labels. Raises FieldContested where they do not stay."""
        patch = {"metadata": {"uid": uid, "labels": labels}}
        live = await self._api.merge(kind, owner.namespace, name, patch)
        there = live["metadata"].get("labels") or {}
        kept = all(there.get(key) == value for key, value in labels.items())
        error = None if kept else _contested(kind, name, "metadata.labels", live)
        self.seen(live, kind)
        if error is not None:
            raise error

    async def apply(self, obj: Object, uid: str) -> None:
        """Server-side apply, and what others added to what must be exactly ours is taken away.

        Raises:
            FieldContested: the object is not as it was applied: somebody changes it at once.
        """
        kind, meta = obj["kind"], obj["metadata"]
        if fields.yielded(obj):
            live = await self._api.get(kind, meta["namespace"], meta["name"])
            if live["metadata"]["uid"] == uid:
                await self._move(obj, {**live, "kind": kind})
        sent = {**obj, "metadata": {**meta, "uid": uid}}
        try:
            live = await self._api.apply(sent)
        except errors.Invalid:
            if not await self._put_lists_back(obj, uid):
                raise
            live = await self._api.apply(sent)
        live["kind"] = kind
        more = diff.excess(obj, live)
        if more:
            only = {"uid": uid, "resourceVersion": live["metadata"]["resourceVersion"]}
            patch = {**more, "metadata": {**more.get("metadata", {}), **only}}
            live = await self._api.merge(kind, meta["namespace"], meta["name"], patch)
            live["kind"] = kind
        path = diff.difference(obj, live)
        error = _contested(kind, meta["name"], path, live) if path else None
        self.seen(live, kind)
        if error is not None:
            raise error

    async def _put_lists_back(self, obj: Object, uid: str) -> bool:
        """Replace the lists that others have changed; False: there are none."""
        kind, meta = obj["kind"], obj["metadata"]
        live = await self._api.get(kind, meta["namespace"], meta["name"])
        patch = diff.lists(obj, live)
        if live["metadata"]["uid"] != uid or not patch:
            return False
        only = {"uid": uid, "resourceVersion": live["metadata"]["resourceVersion"]}
        patched = {**patch, "metadata": only}
        live = await self._api.merge(kind, meta["namespace"], meta["name"], patched)
        await self._move(obj, {**live, "kind": kind})
        return True

    async def take_over(self, obj: Object, uid: str) -> None:
        """Move our fields, and apply: what is wanted no more goes with it."""
        kind, meta = obj["kind"], obj["metadata"]
        live = await self._api.get(kind, meta["namespace"], meta["name"])
        if live["metadata"]["uid"] != uid:
            raise errors.Conflict(409, "Conflict", f"{kind} {meta['name']} has another uid")
        await self._move(obj, {**live, "kind": kind})
        await self.apply(obj, uid)

    async def _move(self, wanted: Object, live: Object, *, anew: bool = False) -> Object:
        """Move our entry of managedFields from Update to Apply; the object as it is then.

        What stood before goes without its digest, so that a crash before the apply that follows
        makes the next round apply. Of a new object all is wanted: where others write beside us
        the next round moves it.
        """
        kind, meta, left = live["kind"], live["metadata"], fields.yielded(wanted)
        for tried in range(1, TRIES + 1):
            if not (fields.unmoved(live) or fields.owns(live, left)):
                return live
            patch: Object = {
                "uid": live["metadata"]["uid"],
                "resourceVersion": live["metadata"]["resourceVersion"],
                "managedFields": fields.moved(live["metadata"]["managedFields"], left),
            }
            if not anew:
                patch["annotations"] = {names.APPLIED: None}
            try:
                name, space = meta["name"], meta["namespace"]
                live = await self._api.merge(kind, space, name, {"metadata": patch})
            except errors.Conflict:
                if tried == TRIES and not anew:
                    raise
                if anew:
                    return live
                live = await self._api.get(kind, meta["namespace"], meta["name"])
        return live

    async def adopt(self, kind: str, name: str, uid: str, owner: Owner) -> None:
        """Become the controller of an object that has none, as Kubernetes' controllers do.

        We are asked for anew first: a PDServing that is deleted must take nothing along.
        """
        parent = await self._api.get(names.KIND, owner.namespace, owner.name)
        meta = parent["metadata"]
        if meta["uid"] != owner.uid or meta.get("deletionTimestamp"):
            raise errors.Conflict(409, "Conflict", f"{names.KIND} {owner.name} is deleted")
        live = await self._api.get(kind, owner.namespace, name)
        live["kind"] = kind
        known = live["metadata"]
        claim = kind == "PersistentVolumeClaim" and not ownership.controlled(live)
        if known["uid"] == uid and (claim or ownership.whose(live, owner) is Whose.ORPHAN):
            patch = {
                "uid": uid,
                "resourceVersion": known["resourceVersion"],
                "ownerReferences": [*(known.get("ownerReferences") or []), owner.reference()],
            }
            live = await self._api.merge(kind, owner.namespace, name, {"metadata": patch})
        self.seen(live, kind)

    async def recover(self, metadata: Object, owner: Owner) -> None:
        """Restore the labels of a ControllerRevision. Raises RevisionMissing."""
        kind, name = "ControllerRevision", metadata["name"]
        try:
            live = await self._api.get(kind, owner.namespace, name)
        except errors.Missing:
            live = {"metadata": {}}
        if ownership.whose({**live, "kind": kind}, owner) is not Whose.OURS:
            raise errors.RevisionMissing(f"pods run what {kind} {name} says, and it is gone")
        await self.label(kind, name, live["metadata"]["uid"], metadata["labels"], owner)

    def seen(self, obj: Object, kind: str) -> None:
        """Read our own writes: the next round must not decide on what stood before them."""
        obj.setdefault("kind", kind)
        if kind not in UNFOLLOWED:
            self._store.put(obj)


def _contested(kind: str, name: str, path: str, live: Object) -> errors.FieldContested:
    others = fields.others(live)
    who = f" ({', '.join(others)} own fields of it)" if others else ""
    return errors.FieldContested(
        f"{kind} {name}: {path} was applied and is not as it was applied{who}: the API server does "
        "not know the field, or somebody changes it at once; leave it out, or stop that"
    )
