"""One key for each claim, which the PDServings of a namespace share and none of them owns."""

import asyncio
import base64
import dataclasses

import pytest
from bench import Bench
from fake_api import FakeApi
from pds_operator import errors, names
from pds_operator.decide.actions import MakeCacheKey, MakeSeal
from pds_operator.facts.observed import Revision
from pds_operator.render import engine, volumes
from pds_operator.render.owner import Owner
from pds_operator.run.vault import Vault
from pds_operator.settings import Settings
from plugin import output
from worlds import NOW, OWNER, World, desired, digest, raw_spec

ON = {"volume": {"existingClaim": "c"}}
SEAL = "pds-cache-key-c"


def rendered(cache):
    raw = raw_spec(compileCache=cache)
    return engine.render(raw, desired(raw).spec, OWNER, Settings())


@pytest.mark.parametrize(
    ("volume", "secret", "claims"),
    [
        ({"existingClaim": "c"}, SEAL, {SEAL: "c"}),
        ({"claim": {"size": "1Gi"}}, "pds-cache-key-chat-cache", None),
        ({"ephemeral": {}}, "chat-cache-key", {}),
        (None, "chat-cache-key", {}),
    ],
)
def test_the_key_is_the_claims_where_there_is_one(volume, secret, claims):
    data = rendered({"volume": volume} if volume else {"warmup": {"workers": 1}})
    wanted = {secret: "chat-cache"} if claims is None else claims
    assert volumes.sealed(data) == ({secret}, wanted)


def test_names_of_claims_of_any_length_name_different_secrets():
    long = [names.seal("a" * 252 + end) for end in "bc"]
    assert len(set(long)) == 2
    assert all(len(name) <= 253 for name in long)
    assert names.seal("c") == SEAL


def planned(world):
    return [item for item in world.plan().actions if isinstance(item, MakeSeal | MakeCacheKey)]


def test_it_is_made_once_a_revision_mounts_it_and_before_its_pods():
    world = World(raw_spec(compileCache=ON))
    assert planned(world) == []
    world.round()
    assert planned(world) == [MakeSeal("c")]
    done = [str(item) for item in world.plan().actions]
    made = done.index("make the key of the compile cache on c")
    assert made < next(at for at, text in enumerate(done) if text.startswith("create pod"))
    world.settle()
    assert planned(world) == []
    assert world.keys.seals == {SEAL}
    assert not world.keys.cache


def of_the_release_before(world):
    """Its revisions mount a key of the PDServing's own."""
    for own, stored in world.revisions.items():
        data = {**stored.data, "roles": {**stored.data["roles"]}}
        for role, part in data["roles"].items():
            mounted = [
                {**v, "secret": {"secretName": "chat-cache-key"}} if v["name"] == "cache-key" else v
                for v in part["template"]["spec"]["volumes"]
            ]
            spec = {**part["template"]["spec"], "volumes": mounted}
            data["roles"][role] = {**part, "template": {**part["template"], "spec": spec}}
        world.revisions[own] = dataclasses.replace(stored, data=data)


def test_pods_of_the_release_before_keep_their_key_until_their_next_revision():
    world = World(raw_spec(compileCache=ON))
    world.settle()
    of_the_release_before(world)
    world.keys = dataclasses.replace(world.keys, cache=True, seals=frozenset())
    assert not world.plan_writes()
    world.keys = dataclasses.replace(world.keys, cache=False)  # somebody deletes it
    assert planned(world) == [MakeCacheKey(True)]
    world.settle()
    world.now += 60
    world.raw = raw_spec(compileCache=ON, image="engine:2")
    world.settle()
    assert world.keys.seals == {SEAL}
    assert {pod.revision for pod in world.pods.values()} == {digest(world.raw)}


def vaults(api):
    """Of two PDServings on one claim."""
    return [(Vault(), Owner(name, "team", f"uid-{name}")) for name in ("chat", "code")]


async def test_whoever_creates_it_first_has_made_it():
    api = FakeApi()
    pair = vaults(api)
    await asyncio.gather(*(vault.make_seal(api, owner, "c") for vault, owner in pair))
    live = api.one("Secret", SEAL)
    assert "ownerReferences" not in live["metadata"]
    assert live["immutable"]
    assert len(bytes.fromhex(_key(live))) == 32
    revisions = {"d": Revision("d", 1, "", rendered(ON))}
    for vault, owner in pair:
        await vault.look(api, owner, (), revisions, NOW)
        assert vault.facts.seals == {SEAL}


def _key(live):
    return base64.b64decode(live["data"]["cache.key"]).decode()


async def test_a_stranger_of_that_name_is_left_untouched():
    api = FakeApi()
    meta = {"name": SEAL, "namespace": "team"}
    theirs = await api.create({"kind": "Secret", "metadata": meta, "stringData": {"a": "b"}})
    [(vault, owner), _] = vaults(api)
    with pytest.raises(errors.NameTaken, match=f"Secret {SEAL} is to hold the key"):
        await vault.make_seal(api, owner, "c")
    assert api.one("Secret", SEAL)["data"] == theirs["data"]
    await vault.look(api, owner, (), {"d": Revision("d", 1, "", rendered(ON))}, NOW)
    assert vault.facts.seals == frozenset()


async def test_it_outlives_the_pdserving_that_made_it_and_a_lost_one_is_made_again():
    bench = Bench(raw_spec(compileCache=ON))
    await bench.settle()
    before = bench.api.one("Secret", SEAL)
    assert sorted(bench.api.names("Secret")) == ["chat-control", "chat-keyring", SEAL]
    assert SEAL not in [obj["metadata"]["name"] for obj in bench.api.owned("uid-chat")]
    del bench.api.objects["Secret", "team", SEAL]
    bench.now += 6
    await bench.settle()
    assert _key(bench.api.one("Secret", SEAL)) != _key(before)


def seal(claim):
    meta = {"name": names.seal(claim), "namespace": "team", "annotations": {names.CLAIM: claim}}
    return {"metadata": meta}


@pytest.fixture
def shared(kubectl):
    """A claim in use, one of an older revision alone, and one of nobody."""
    specs = {"chat": {"existingClaim": "c"}, "code": {"claim": {"size": "1Gi"}}}
    pdservings = [
        {"metadata": {"name": name}, "spec": {"compileCache": {"volume": volume}}}
        for name, volume in specs.items()
    ]
    labels = {names.NAME: "chat"}
    old = {"metadata": {"name": "chat-x", "labels": labels}, "data": rendered(_on("old"))}
    kubectl.answers |= {
        "get secrets": {"items": [seal(name) for name in ("c", "code-cache", "gone", "old")]},
        "get pdservings": {"items": pdservings},
        "get controllerrevisions": {"items": [old]},
        "delete --raw": {},
    }
    return kubectl


def _on(claim):
    return {"volume": {"existingClaim": claim}}


def test_prune_lists_what_no_pdserving_uses_and_deletes_nothing(shared):
    lines = output("cache", "prune", "-n", "team").splitlines()
    assert [line.split(maxsplit=3) for line in lines[1:-1]] == [
        [SEAL, "c", "chat"],
        ["pds-cache-key-code-cache", "code-cache", "code"],
        ["pds-cache-key-gone", "gone", "-", "would be deleted"],
        ["pds-cache-key-old", "old", "chat"],
    ]
    assert lines[-1] == "nothing was deleted: kubectl pds cache prune --yes does it"
    assert not any(words[0] == "delete" for words in shared.asked)


def test_prune_deletes_when_it_is_told_to(shared):
    assert "deleted" in output("cache", "prune", "--yes")
    deleted = [words[2] for words in shared.asked if words[0] == "delete"]
    assert deleted == ["/api/v1/namespaces/team/secrets/pds-cache-key-gone"]
