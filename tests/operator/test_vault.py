"""The Secrets of a PDServing, read and written by their names: with an API server in memory."""

import base64

import pytest
from fake_api import FakeApi
from pds_engine import signing
from pds_engine.router.keyring import Ring, read
from pds_operator import errors, names
from pds_operator.decide.actions import KeepRing, MakeCacheKey, MakeKey
from pds_operator.facts.observed import ControlKeys, KeySecret
from pds_operator.run import keys
from pds_operator.run.reconcile import Reconciler
from pds_operator.run.vault import Vault
from pds_operator.settings import Settings
from worlds import NOW, OWNER, raw_spec

OLD = dict.fromkeys(("server.key", "server.pub", "client.key", "client.pub"), "0" * 40)
OLD["hmac.key"] = "11" * 32


def leads():
    return True


class VaultBench:
    """A vault of a PDServing of which the release before has made the one Secret."""

    def __init__(self):
        self.api, self.vault, self.now = FakeApi(), Vault(), NOW

    async def upgraded(self):
        metadata = OWNER.metadata("chat-control")
        await self.api.create({"kind": "Secret", "metadata": metadata, "stringData": OLD})
        return await self.look()

    async def look(self, *in_use):
        self.now += 5
        await self.vault.look(self.api, OWNER, in_use, {}, self.now)
        return self.vault.facts

    async def rotate(self, asked=""):
        await self.vault.make_key(self.api, OWNER, MakeKey(False, asked), leads)
        return await self.look()

    def data(self, name):
        data = self.api.one("Secret", name)["data"]
        return {file: base64.b64decode(text).decode() for file, text in data.items()}

    def delete(self, name):
        del self.api.objects["Secret", "team", name]


@pytest.fixture
def bench():
    return VaultBench()


def test_the_engine_and_the_router_name_a_key_as_we_do():
    key = bytes.fromhex(keys.control_keys()["hmac.key"])
    assert keys.key_id(key) == signing.key_id(key)


async def test_from_nothing(bench):
    assert await bench.look() == ControlKeys()
    await bench.vault.make_key(bench.api, OWNER, MakeKey(True), leads)
    await bench.vault.keep_ring(bench.api, OWNER, KeepRing(frozenset({""}), ""))
    await bench.vault.make_cache_key(bench.api, OWNER, MakeCacheKey(False))
    assert bench.api.names("Secret") == ["chat-cache-key", "chat-control", "chat-keyring"]
    first = bench.data("chat-control")
    assert sorted(first) == sorted(OLD)
    assert bench.data("chat-cache-key")["cache.key"] != first["hmac.key"]
    assert bench.api.one("Secret", "chat-control")["immutable"]
    uid = bench.api.one("Secret", "chat-control")["metadata"]["uid"]
    known = ControlKeys({"": KeySecret(uid)}, frozenset({""}), "", frozenset({""}), True)
    assert await bench.look() == known == bench.vault.facts


async def test_the_key_of_the_cache_starts_as_a_copy(bench):
    await bench.upgraded()
    await bench.vault.make_cache_key(bench.api, OWNER, MakeCacheKey(True))
    assert bench.data("chat-cache-key") == {"cache.key": OLD["hmac.key"]}


async def test_routers_of_both_releases_can_read_the_ring(bench, tmp_path):
    await bench.upgraded()
    await bench.vault.keep_ring(bench.api, OWNER, KeepRing(frozenset({""}), ""))
    await bench.rotate()
    for file, text in bench.data("chat-keyring").items():
        (tmp_path / file).write_text(text)
    old = bytes.fromhex(OLD["hmac.key"])
    [new] = [bench.vault.key(key) for key in bench.vault.facts.ring - {""}]
    by_id = {keys.key_id(old): old, keys.key_id(new): new}
    assert read(tmp_path) == Ring(by_id, keys.key_id(old))


async def test_a_new_key_has_a_secret_of_its_own_and_the_ring_keeps_both(bench):
    await bench.upgraded()
    found = await bench.rotate("2026-01-01T00:00:00Z")
    [key] = set(found.secrets) - {""}
    assert found.ring == found.held == {"", key}
    assert (found.active, found.secrets[key].asked) == (key, "2026-01-01T00:00:00Z")
    made = bench.api.one("Secret", f"chat-control-{key}")
    assert made["immutable"]
    assert made["metadata"]["labels"][names.KEY] == key
    assert keys.key_id(bytes.fromhex(bench.data(f"chat-control-{key}")["hmac.key"])) == key
    assert bench.data("chat-control") == OLD


async def test_a_key_whose_secret_is_gone_is_known_as_long_as_the_ring_is(bench):
    await bench.upgraded()
    await bench.vault.keep_ring(bench.api, OWNER, KeepRing(frozenset({""}), ""))
    bench.delete("chat-control")
    found = await bench.look()
    assert (set(found.secrets), found.ring, found.held) == (set(), {""}, {""})
    bench.vault = Vault()  # the operator starts anew
    assert await bench.look() == found
    assert bench.vault.key("") == bytes.fromhex(OLD["hmac.key"])
    found = await bench.rotate()
    assert len(found.ring) == 2
    [key] = found.secrets
    await bench.vault.keep_ring(bench.api, OWNER, KeepRing(frozenset({key}), key))
    assert set(bench.data("chat-keyring")) == {"hmac.key", f"{key}.key"}
    bench.vault = Vault()
    assert (await bench.look()).ring == {key}


async def test_a_lost_ring_is_written_of_what_is_known(bench):
    await bench.upgraded()
    found = await bench.rotate()
    bench.delete("chat-control")
    bench.delete("chat-keyring")
    assert (await bench.look()).ring is None
    await bench.vault.keep_ring(bench.api, OWNER, KeepRing(found.ring, found.active))
    assert (await bench.look()).ring == found.ring


async def test_who_dies_between_the_two_writes_leaves_a_trace(bench):
    await bench.upgraded()
    with pytest.raises(errors.NotLeading):
        await bench.vault.make_key(bench.api, OWNER, MakeKey(False), lambda: False)
    bench.vault = Vault()
    found = await bench.look()
    assert set(found.secrets) == {""}
    assert found.active not in ("", None)


async def test_what_is_at_rest_is_not_written(bench):
    await bench.upgraded()
    ring = KeepRing(frozenset({""}), "")
    await bench.vault.keep_ring(bench.api, OWNER, ring)
    bench.api.calls.clear()
    await bench.vault.keep_ring(bench.api, OWNER, ring)
    assert bench.api.calls == []


@pytest.mark.parametrize(
    ("owner", "says", "awaited"),
    [
        ({"name": "other"}, "NameTaken: Secret chat-control exists and is not owned", ()),
        ({}, "PredecessorLeaving: Secret chat-control belongs to a PDServing of this name", ("",)),
    ],
)
async def test_secrets_of_another_owner_are_not_ours(bench, owner, says, awaited):
    await bench.upgraded()
    other = bench.api.one("Secret", "chat-control")
    other["metadata"]["ownerReferences"][0] |= {"uid": "uid-before", **owner}
    found = await bench.look()
    assert (found.secrets, found.awaited) == ({}, frozenset(awaited))
    with pytest.raises(errors.NameTaken) as caught:
        await bench.vault.make_key(bench.api, OWNER, MakeKey(True), leads)
    assert f"{caught.value.reason}: {caught.value.message}".startswith(says)
    assert bench.data("chat-control") == OLD


async def test_a_request_is_read_of_the_object_and_a_lost_secret_within_five_seconds():
    """The whole round: from the annotation, and from the server's 404, to a new key."""
    api, now = FakeApi(), [NOW]
    reconciler = Reconciler(api, NoPods(), Settings(), leads, lambda: now[0])
    api.store = reconciler.store
    meta = {"name": "chat", "namespace": "team", "uid": OWNER.uid}
    parent = api.put({"kind": "PDServing", "metadata": meta, "spec": raw_spec()})

    async def rounds(count=3):
        for _ in range(count):
            wait = await reconciler.once(("team", "chat"))
            assert wait <= 5
            now[0] += 5
        return [name for name in api.names("Secret") if name.startswith("chat-control")]

    assert await rounds() == ["chat-control"]
    parent["metadata"]["annotations"] = {names.ROTATE: "now"}
    api.put(parent)
    [_, second] = await rounds()
    del api.objects["Secret", "team", second]
    found = await rounds()
    assert second not in found
    assert len(found) == 2


class NoPods:
    async def look(self, leaders, routers, keys):
        return {}, []
