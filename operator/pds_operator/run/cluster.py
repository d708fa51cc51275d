"""What we own, followed by one list and watch per kind: always at hand, never asked for.

The store holds facts for pods (slim: a thousand pods must not cost their objects) and plain
objects for the rest, grouped by PDServing. A change marks its PDServing dirty, once.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pds_operator import errors, names
from pds_operator.facts import fields
from pds_operator.facts.observed import Pod, RouterPod, WarmupPod
from pds_operator.facts.reading import owner_uid, pod_facts, router_facts, slice_facts, warmup_facts
from pds_operator.run.api import SILENT, TRANSIENT, Api

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a PDServing."""

log = logging.getLogger("pds_operator.cluster")

FOLLOWED = (
    "Pod",
    "Service",
    "EndpointSlice",  # of the endpoint: it has the labels of its Service
    "ConfigMap",
    "ServiceAccount",
    "RoleBinding",
    "PersistentVolumeClaim",
    "Deployment",
    "ReplicaSet",  # which say whose router a pod is
    "ControllerRevision",
    "Job",
    "PodDisruptionBudget",
    "NetworkPolicy",
    names.ROLE_KIND,
)


@dataclass(slots=True)
class Owned:
    """What one PDServing has, by name; the second of each pair is the resourceVersion."""

    pods: dict[str, tuple[Pod, int]] = field(default_factory=dict)
    routers: dict[str, tuple[RouterPod, int]] = field(default_factory=dict)
    warmups: dict[str, tuple[WarmupPod, int]] = field(default_factory=dict)
    objects: dict[tuple[str, str], tuple[Object, int]] = field(default_factory=dict)
    sets: dict[str, tuple[tuple[str, str], int]] = field(default_factory=dict)
    """ReplicaSets: uid, and the uid of what controls them."""

    @property
    def controllers(self) -> dict[str, str]:
        """By the uid of a ReplicaSet, that of its Deployment."""
        return dict(pair for pair, _ in self.sets.values())


class Store:
    """Everything that is followed, and the PDServings themselves."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._owned: dict[Key, Owned] = defaultdict(Owned)
        self._parents: dict[Key, tuple[Object, int]] = {}
        self._keys: dict[tuple[str, str, str], Key] = {}
        """By (kind, namespace, name): whose labels it had when it was last seen."""

    def owned(self, key: Key) -> Owned:
        """What is followed for `key`."""
        return self._owned.get(key) or Owned()

    def parent(self, key: Key) -> Object | None:
        """The PDServing, if there is one."""
        found = self._parents.get(key)
        return found[0] if found else None

    def put_parent(self, obj: Object, *, ours: bool = False) -> None:
        """A PDServing was seen. A status that is `ours` alone is no reason to look."""
        meta, version = obj["metadata"], _version(obj)
        key = (meta["namespace"], meta["name"])
        known = self._parents.get(key)
        same = known is not None and known[0]["metadata"]["uid"] == meta["uid"]
        if known is None or version > known[1] or (not same and version == known[1]):
            self._parents[key] = (_slim(obj), version)
            generation = known[0]["metadata"].get("generation") if known else None
            if not (ours and same and generation == meta.get("generation")):
                self._changed(key)

    def drop_parent(self, key: Key, uid: str) -> None:
        """The PDServing of that uid is gone; what it owned goes as it is collected."""
        known = self._parents.get(key)
        if known is not None and known[0]["metadata"]["uid"] == uid:
            del self._parents[key]
            self._changed(key)

    def parents(self) -> set[tuple[Key, str]]:
        """The PDServings that are known, and their uids."""
        return {(key, obj["metadata"]["uid"]) for key, (obj, _) in self._parents.items()}

    def replace_parents(
        self,
        namespace: str | None,
        items: Iterable[Object],
        version: int,
        before: set[tuple[Key, str]],
    ) -> list[Key]:
        """All PDServings of a list of `version`; `before` is what was known when it was asked for.

        kopf reports the same, and may have been quicker: what it has reported meanwhile stands.
        Returns what no event had reported: new ones, and those that are gone.
        """
        known, found = self.parents(), {_identity(item): item for item in items}
        gone = [
            (key, uid)
            for key, uid in known & before
            if (key, uid) not in found
            and namespace in (None, key[0])
            # Where versions are no numbers, both are 0.
            and self._parents[key][1] <= version
        ]
        for key, uid in gone:
            self.drop_parent(key, uid)
        fresh = [item for who, item in found.items() if who in known or who not in before]
        for item in fresh:
            key, _ = _identity(item)
            if key not in self._parents or self._parents[key][1] <= version:
                self.put_parent(item)
        return sorted(key for key, _ in (known ^ self.parents()))

    def put(self, obj: Object) -> None:
        """An object was seen, or written by us. What is older than what we know is ignored.

        What we have written comes back by the watch, and is no news then.
        """
        key = _key(obj)
        if key is None:
            return
        service = obj["metadata"]["labels"].get(names.SERVICE_NAME, key[1])
        if obj["kind"] == "EndpointSlice" and service != key[1]:
            return  # of the ranks' Service, which nobody asks
        self._moved(obj, key)
        owned, name, version = self._owned[key], obj["metadata"]["name"], _version(obj)
        if obj["kind"] == "ReplicaSet":
            facts_of_set = obj["metadata"]["uid"], owner_uid(obj)
            news = _put(owned.sets, name, facts_of_set, version)
        elif obj["kind"] != "Pod":
            news = _put(owned.objects, (obj["kind"], name), _slim(obj), version)
        else:
            facts = pod_facts(obj)
            if facts is not None:
                news = _put(owned.pods, name, facts, version)
            elif obj["metadata"]["labels"].get(names.ROLE) == "router":
                news = _put(owned.routers, name, router_facts(obj), version)
            elif obj["metadata"]["labels"].get(names.ROLE) == "warmup":
                news = _put(owned.warmups, name, warmup_facts(obj), version)
            else:  # nothing of ours, whatever its labels say
                news = False
        if news:
            self._changed(key)

    def _moved(self, obj: Object, key: Key) -> None:
        """Somebody gave it to another name: our watches select any, and say nothing to the old."""
        kind, name = obj["kind"], obj["metadata"]["name"]
        before = self._keys.get((kind, key[0], name), key)
        self._keys[kind, key[0], name] = key
        if before != key:
            self._drop(self._owned[before], kind, name)
            self._changed(before)

    def drop(self, obj: Object) -> None:
        """An object is gone."""
        key = _key(obj)
        if key is None:
            return
        self._keys.pop((obj["kind"], key[0], obj["metadata"]["name"]), None)
        owned = self._owned[key]
        self._drop(owned, obj["kind"], obj["metadata"]["name"])
        pods = owned.pods or owned.routers or owned.warmups
        if not (pods or owned.objects or owned.sets or key in self._parents):
            del self._owned[key]
        self._changed(key)

    def replace(self, kind: str, namespace: str | None, items: Iterable[Object]) -> None:
        """All objects of a kind, from a list: what is not among them is gone."""
        there = {(_key(item), item["metadata"]["name"]) for item in items}
        for key, owned in list(self._owned.items()):
            if namespace is not None and key[0] != namespace:
                continue
            for name in self._names(owned, kind):
                if (key, name) not in there:
                    self._keys.pop((kind, key[0], name), None)
                    self._drop(owned, kind, name)
                    self._changed(key)
        for item in items:
            self.put(item)

    def _names(self, owned: Owned, kind: str) -> list[str]:
        if kind == "Pod":
            return [*owned.pods, *owned.routers, *owned.warmups]
        if kind == "ReplicaSet":
            return [*owned.sets]
        return [name for other, name in owned.objects if other == kind]

    def _drop(self, owned: Owned, kind: str, name: str) -> None:
        if kind == "Pod":
            owned.pods.pop(name, None)
            owned.routers.pop(name, None)
            owned.warmups.pop(name, None)
        elif kind == "ReplicaSet":
            owned.sets.pop(name, None)
        else:
            owned.objects.pop((kind, name), None)


async def follow(
    api: Api, store: Store, kind: str, namespace: str | None, synced: asyncio.Event
) -> None:
    """List and watch one kind for ever. `synced` is set after the first list."""
    pause = 0.2
    while True:
        try:
            items, version = await api.list(kind, namespace, names.NAME)
            store.replace(kind, namespace, items)
            synced.set()
            pause = 0.2
            while True:
                version = await _watch_once(api, store, kind, namespace, version)
        except errors.Gone:
            log.info("the watch of %s is too old; listing anew", kind)
        except errors.ApiError as error:
            log.warning("following %s: %s", kind, error.message)
            await asyncio.sleep(max(pause, error.after))
        except TRANSIENT as error:
            log.warning("following %s: %s", kind, error or type(error).__name__)
            await asyncio.sleep(pause)
        pause = min(10.0, pause * 2)


async def _watch_once(
    api: Api, store: Store, kind: str, namespace: str | None, version: str
) -> str:
    """One watch to its end, which is often a clean one: the next resumes where it ended."""
    began, seen = asyncio.get_running_loop().time(), 0
    try:
        async for event in api.watch(kind, namespace, version, names.NAME):
            obj = event["object"]
            version, seen = obj["metadata"]["resourceVersion"], seen + 1
            if event["type"] == "BOOKMARK":
                continue
            obj.setdefault("kind", kind)
            if event["type"] == "DELETED":
                store.drop(obj)
            else:
                store.put(obj)
    except SILENT:
        log.warning("the watch of %s is silent; going on from where it was", kind)
    if not seen and asyncio.get_running_loop().time() - began < 1.0:
        await asyncio.sleep(0.5)  # a server that ends every watch at once
    return version


async def follow_all(
    api: Api, store: Store, namespaces: list[str], ready: Callable[[], Awaitable[None]]
) -> None:
    """Follow everything; `ready` is awaited once all first lists are in."""
    places: list[str | None] = [*namespaces] or [None]
    watches = [(kind, place, asyncio.Event()) for kind in FOLLOWED for place in places]
    async with asyncio.TaskGroup() as tasks:
        for kind, place, synced in watches:
            tasks.create_task(follow(api, store, kind, place, synced), name=f"follow {kind}")
        for _, _, synced in watches:
            await synced.wait()
        await ready()


def _put(shelf: dict[Any, tuple[Any, int]], key: Any, value: Any, version: int) -> bool:
    """Whether it is news."""
    known = shelf.get(key)
    if known is not None and version < known[1]:
        return False
    shelf[key] = (value, version)
    return known is None or value != known[0]


def _key(obj: Object) -> Key | None:
    meta = obj["metadata"]
    name = (meta.get("labels") or {}).get(names.NAME)
    return (meta["namespace"], name) if name else None


def _identity(obj: Object) -> tuple[Key, str]:
    meta = obj["metadata"]
    return (meta["namespace"], meta["name"]), meta["uid"]


def _version(obj: Object) -> int:
    """Resource versions are opaque by contract, and etcd's counter in fact.

    Where they are not numbers everything seen counts as newest, which is what a watch delivers.
    """
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _slim(obj: Object) -> Object:
    if obj.get("kind") == "EndpointSlice":
        return slice_facts(obj)
    entries = obj["metadata"].pop("managedFields", None)
    if kept := fields.slim(entries or []):
        obj["metadata"]["managedFields"] = kept
    return obj
