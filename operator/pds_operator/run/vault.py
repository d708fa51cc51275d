"""The Secrets of one PDServing: read by their names, and written by what a plan says of them.

Secrets are neither listed nor watched: who may do that sees those of others too. They are asked
for again every few seconds. What was read of a key is remembered, so that a Secret that somebody
deletes is missed by nobody before its groups are gone.
"""

import base64
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pds_operator import errors, names
from pds_operator.decide import diff, ownership
from pds_operator.decide.actions import KeepRing, MakeCacheKey, MakeKey
from pds_operator.decide.ownership import Whose
from pds_operator.facts.observed import ControlKeys, KeySecret, Revision
from pds_operator.facts.reading import KEY_ID
from pds_operator.render import volumes
from pds_operator.render.owner import Owner
from pds_operator.run.api import Api
from pds_operator.run.keys import control_keys, key_id, random_key

Object = dict[str, Any]

log = logging.getLogger("pds_operator.vault")

READ_SECONDS = 5.0
"""How old the last look at the Secrets may become."""
HMAC, CACHE = "hmac.key", "cache.key"


class Vault:
    """The keys of one PDServing by their ids; the first key has none, "". Rounds share it."""

    def __init__(self) -> None:
        self.facts: ControlKeys | None = None
        self.objects: dict[tuple[str, str], Object] = {}
        """What has the names of our Secrets, whosesoever it is: kind and metadata."""
        self._held: dict[str, bytes] = {}
        self._secrets: dict[str, KeySecret] = {}
        self._awaited: frozenset[str] = frozenset()
        self._ring: Object | None = None
        self._cache = False
        self._seals: frozenset[str] = frozenset()
        self._looked: float | None = None

    def key(self, name: str) -> bytes:
        """By which to sign requests to a pod with this key; empty where it is not known."""
        return self._held.get(name, b"")

    def forget(self) -> None:
        """Something was written: look again in the next round."""
        self._looked = None

    async def look(
        self,
        api: Api,
        owner: Owner,
        in_use: Iterable[str],
        revisions: Mapping[str, Revision],
        now: float,
    ) -> None:
        """Read them all, unless that was done just now. `in_use` are the keys of pods.

        Raises:
            ApiError, or one of `api.TRANSIENT`: nothing was learned.
        """
        if self._looked is not None and 0 <= now - self._looked < 0.8 * READ_SECONDS:
            return
        found: dict[str, Object | None] = {}

        async def read(name: str) -> Whose | None:
            found[name] = live = await _read(api, owner, name)
            return None if live is None else ownership.whose(live, owner)

        name = names.keyring(owner.name)
        whose = await read(name)
        ring = found[name] if whose is Whose.OURS else None
        in_ring = self._of_ring(owner, ring)
        # One that is to be adopted says no more than which Secrets are, too.
        orphan = self._of_ring(owner, found[name] if whose is Whose.ORPHAN else None)
        wanted = {"", *in_use, *self._secrets, *in_ring, *orphan}
        # Without a ring only revisions say which keys there were.
        newest = max(revisions.values(), key=lambda item: item.number, default=None)
        wanted |= {r.key for r in revisions.values() if ring is None or r is newest}
        secrets: dict[str, KeySecret] = {}
        awaited = set()
        for key in sorted(wanted):
            name = names.control_secret(owner.name, key)
            match await read(name), found[name]:
                case Whose.OURS, dict(live):
                    secrets[key] = self._opened(key, live)
                case Whose.ORPHAN | Whose.PREDECESSOR, _:
                    awaited.add(key)
        self._cache = await read(names.cache_key(owner.name)) is Whose.OURS
        self._seals = await _sealing(api, owner, revisions)
        for key, value in in_ring.items():
            self._held.setdefault(key, value)
        self._ring, self._secrets, self._awaited = ring, secrets, frozenset(awaited)
        self.objects = {
            ("Secret", name): {"kind": "Secret", "metadata": live["metadata"]}
            for name, live in found.items()
            if live is not None
        }
        # No event reports when what is not ours goes: it is asked for each time.
        foreign = any(live and not self._ours(live, owner) for live in found.values())
        self._looked = None if foreign else now
        self._publish(owner)

    async def make_key(
        self, api: Api, owner: Owner, action: MakeKey, leads: Callable[[], bool]
    ) -> None:
        """The ring first: who reads there of a key whose Secret was never made makes another.

        The first key has a name that everybody knows, and the ring comes behind it.

        Raises:
            NotLeading: the lease was lost in between.
        """
        self.forget()
        made = control_keys()
        key = "" if action.first else key_id(bytes.fromhex(made[HMAC]))
        labels = {names.KEY: key} if key else {}
        metadata = owner.metadata(names.control_secret(owner.name, key), **labels)
        if action.asked:
            metadata["annotations"] = {names.ROTATE: action.asked}
        if key:
            self._held[key] = bytes.fromhex(made[HMAC])
            kept = frozenset(self._held) & (self._of_ring(owner, self._ring).keys() | {key})
            await self.keep_ring(api, owner, KeepRing(kept | frozenset(self._secrets), key))
        if not leads():
            raise errors.NotLeading("the lease is not ours; a key was not made")
        live = await self._post(api, owner, _secret(metadata, made))
        self._secrets[key] = self._opened(key, live)
        self._publish(owner)

    async def keep_ring(self, api: Api, owner: Owner, action: KeepRing) -> None:
        """Make the ring, or write it anew where it differs."""
        self.forget()
        held = {key: self._held[key] for key in sorted(action.keys) if key in self._held}
        # Groups that do not report which key they have, have the first; so have routers that
        # read no other file.
        data = {f"{key_id(value)}.key": value.hex() for value in held.values()}
        data[HMAC] = held.get("", self.key(action.active)).hex()
        metadata = owner.metadata(names.keyring(owner.name))
        metadata["annotations"] = {names.ACTIVE: names.control_secret(owner.name, action.active)}
        if self._ring is None:
            live = await self._post(api, owner, _secret(metadata, data, immutable=False))
            self._ring = live
        sent = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
        gone = dict.fromkeys(set(self._ring.get("data") or {}) - set(sent))
        meta = {"uid": self._ring["metadata"]["uid"], "annotations": metadata["annotations"]}
        patch = {"metadata": meta, "data": {**gone, **sent}}
        if not diff.covers(self._ring, {**patch, "data": sent}) or gone:
            name = names.keyring(owner.name)
            self._ring = await api.merge("Secret", owner.namespace, name, patch)
        self._publish(owner)

    async def make_cache_key(self, api: Api, owner: Owner, action: MakeCacheKey) -> None:
        """A copy of the first control key, or a key of its own."""
        self.forget()
        copied = action.copy and "" in self._secrets and self.key("")
        value = self.key("").hex() if copied else random_key()
        metadata = owner.metadata(names.cache_key(owner.name))
        await self._post(api, owner, _secret(metadata, {CACHE: value}))
        self._cache = True
        self._publish(owner)

    async def make_seal(self, api: Api, owner: Owner, claim: str) -> None:
        """A key for all PDServings that use the claim. Who creates it first has made it.

        Nobody owns it: what stands in the volume outlives each of them.

        Raises:
            NameTaken: a Secret of that name is there, and is none.
        """
        self.forget()
        name = names.seal(claim)
        metadata = {"name": name, "namespace": owner.namespace, "labels": names.seal_labels()}
        metadata["annotations"] = {names.CLAIM: claim}
        try:
            await api.create(_secret(metadata, {CACHE: random_key()}))
        except errors.Conflict as error:
            if error.api_reason != "AlreadyExists":
                raise
            if not _seals(await api.get("Secret", owner.namespace, name)):
                raise errors.NameTaken(
                    f"Secret {name} is to hold the key of the compile cache on claim {claim}, and "
                    "somebody has made another of that name; it is left untouched: delete it"
                ) from error
        self._seals |= {name}
        self._publish(owner)

    @staticmethod
    def _ours(live: Object, owner: Owner) -> bool:
        return ownership.whose(live, owner) is Whose.OURS

    async def _post(self, api: Api, owner: Owner, secret: Object) -> Object:
        """POST. What is there already and ours is as good.

        Raises:
            Conflict: what is there is to be adopted first.
            NameTaken: it is a stranger's, or a predecessor's, which goes.
        """
        name = secret["metadata"]["name"]
        try:
            return await api.create(secret)
        except errors.Conflict as error:
            if error.api_reason != "AlreadyExists":
                raise
        live = await api.get("Secret", owner.namespace, name)
        whose = ownership.whose(live, owner)
        if whose is Whose.ORPHAN:
            raise errors.Conflict(409, "Conflict", f"Secret {name} is to be adopted first")
        if whose is not Whose.OURS:
            problem = ownership.problem("Secret", name, whose is Whose.PREDECESSOR)
            raise errors.NameTaken(problem.message, reason=problem.reason)
        return live

    def _opened(self, key: str, live: Object) -> KeySecret:
        value = _decoded(live, HMAC)
        if value:
            self._held[key] = value
        notes = live["metadata"].get("annotations") or {}
        return KeySecret(live["metadata"]["uid"], notes.get(names.ROTATE, ""))

    def _of_ring(self, owner: Owner, ring: Object | None) -> dict[str, bytes]:
        """The ring's keys. The first has a file by its id too, and is the one in hmac.key."""
        if ring is None:
            return {}
        plain, found = _decoded(ring, HMAC), {}
        first = key_id(plain) if plain and _active(owner, ring) != key_id(plain) else None
        for file in ring.get("data") or {}:
            name = file.removesuffix(".key")
            value = _decoded(ring, file)
            if value and KEY_ID.fullmatch(name):
                found["" if name == first else name] = value
        return found

    def _publish(self, owner: Owner) -> None:
        ring = self._ring
        self.facts = ControlKeys(
            secrets=dict(self._secrets),
            awaited=self._awaited,
            ring=None if ring is None else frozenset(self._of_ring(owner, ring)),
            active=None if ring is None else _active(owner, ring),
            held=frozenset(self._held),
            cache=self._cache,
            seals=self._seals,
        )


async def _read(api: Api, owner: Owner, name: str) -> Object | None:
    try:
        return await api.get("Secret", owner.namespace, name)
    except errors.Missing:
        return None


async def _sealing(api: Api, owner: Owner, revisions: Mapping[str, Revision]) -> frozenset[str]:
    """The Secrets of claims' caches that revisions mount and that are there."""
    mounted = {name for item in revisions.values() for name in volumes.sealed(item.data)[1]}
    found = {name: await _read(api, owner, name) for name in sorted(mounted)}
    return frozenset(name for name, live in found.items() if live is not None and _seals(live))


def _seals(live: Object) -> bool:
    """It is a key that an operator made for the cache on a claim."""
    labels = live["metadata"].get("labels") or {}
    ours = names.seal_labels().items() <= labels.items()
    return ours and bool(_decoded(live, CACHE))


def _active(owner: Owner, ring: Object) -> str | None:
    name = (ring["metadata"].get("annotations") or {}).get(names.ACTIVE, "")
    if name == names.control_secret(owner.name):
        return ""
    key = name.removeprefix(names.control_secret(owner.name, "x")[:-1])
    return key if KEY_ID.fullmatch(key) else None


def _decoded(secret: Object, file: str) -> bytes:
    """A file of a Secret that is a key in hexadecimal; empty where it is none."""
    try:
        text = base64.b64decode((secret.get("data") or {}).get(file, ""))
        return bytes.fromhex(text.decode().strip())
    except ValueError:
        return b""


def _secret(metadata: Object, data: dict[str, str], *, immutable: bool = True) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        **({"immutable": True} if immutable else {}),
        "stringData": data,
    }
