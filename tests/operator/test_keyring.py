"""Control keys: when one is made, what a rotation does step by step, and when the old one goes."""

import dataclasses

import pytest
from pds_operator import names, revision
from pds_operator.decide import keyring
from pds_operator.facts.observed import ControlKeys, KeySecret, Observed, ScopeFailure
from worlds import OWNER, World, digest, problems, raw_spec, settled

SHARED = {"volume": {"existingClaim": "cache"}}


@pytest.fixture
def world():
    return settled(60)


def keys_of_pods(world):
    return {pod.key for pod in world.pods.values()}


def all_actions(world, rounds=1):
    actions = []
    for _ in range(rounds):
        actions += [str(action) for action in world.plan().actions]
        world.round()
        world.turn_ready()
        world.bury()
    return actions


def test_the_first_key_is_in_no_digest():
    """An operator that knows of keys restarts nothing."""
    raw = raw_spec()
    assert revision.digest(raw, "") == revision.digest(raw)
    assert len({revision.digest(raw), revision.digest(raw, "a" * 10), digest(raw)}) == 2
    assert revision.digest(raw, "a" * 10) != revision.digest(raw, "b" * 10)


def test_pods_of_a_revision_mount_its_key(world):
    world.lose("")
    world.settle()
    [key] = keys_of_pods(world)
    [stored] = [item for item in world.revisions.values() if item.key]
    assert (stored.key, stored.digest) == (key, revision.digest(world.raw, key))
    for role in ("prefill", "decode"):
        template = stored.data["roles"][role]["template"]
        [volume] = [v for v in template["spec"]["volumes"] if v["name"] == "keys"]
        assert volume["secret"]["secretName"] == f"chat-control-{key}"
        assert template["metadata"]["labels"][names.KEY] == key
    [old] = [item for item in world.revisions.values() if not item.key]
    assert names.KEY not in old.data["roles"]["decode"]["template"]["metadata"]["labels"]


def test_a_lost_secret_is_a_rollout(world):
    old = digest(world.raw)
    world.lose("")
    assert [str(action) for action in world.plan().actions] == [
        "make a control key",
        "say KeysRotated",
    ]
    rounds = [[a for a in texts if not a.startswith("unroute")] for texts in world.settle()]
    [key] = keys_of_pods(world)
    new = revision.digest(world.raw, key)
    assert rounds == [
        [f"controllerrevision chat-{new}"],
        ["chat-p-2-0-0", "chat-d-1-0-0"],
        ["route chat-p-2-0-0", "route chat-d-1-0-0"],
        ["drain chat-p-1-0-0"],
        ["delete pod chat-p-1-0-0"],
        ["chat-p-1-0-0"],
        ["route chat-p-1-0-0"],
        ["drain chat-p-0-0-0", "drain chat-d-0-0-0"],
        ["delete pod chat-p-0-0-0", "delete pod chat-d-0-0-0"],
    ]
    assert old in world.revisions
    assert problems(world) == []
    assert (set(world.keys.secrets), world.keys.ring) == ({key}, {key})


def test_a_rotation_that_is_asked_for_is_made_once(world):
    """Whatever the clock says, of whoever asks: what counts is that the text is another one."""
    world.rotate = "2031-01-01T00:00:00Z"
    actions = all_actions(world, 30)
    assert actions.count("make a control key") == 1
    [first] = keys_of_pods(world)
    assert first
    assert not world.plan_writes()
    world.rotate = "yesterday"
    actions = all_actions(world, 30)
    assert actions.count("make a control key") == 1
    assert keys_of_pods(world) & {"", first} == set()
    world.rotate = ""
    assert not world.plan_writes()


def test_an_object_that_comes_with_an_old_request_begins_with_its_first_key():
    world = World(raw_spec())
    world.rotate = "2020-01-01T00:00:00Z"
    world.settle()
    assert keys_of_pods(world) == {""}
    assert world.keys.secrets[""].asked == world.rotate


def test_the_old_key_stays_until_the_new_revision_stood_whole(world):
    world.rotate = "now"
    kept = []
    for _ in range(20):
        kept.append((len(keys_of_pods(world)), len(world.keys.secrets), len(world.keys.ring)))
        world.round()
        world.turn_ready()
        world.bury()
    assert all(secrets == ring and secrets >= pods for pods, secrets, ring in kept[1:])
    assert kept[-1] == (1, 1, 1)
    assert "" not in world.keys.secrets


def test_a_rotation_that_is_asked_for_waits_while_rollouts_are_paused():
    world = World(raw_spec(rollout={"paused": True}))
    world.settle()
    world.rotate = "now"
    world.settle()
    assert keys_of_pods(world) == {""}
    assert len(world.keys.secrets) == 2
    world.raw = raw_spec()
    world.settle()
    assert "" not in keys_of_pods(world)


def test_nothing_holds_the_way_from_a_key_that_is_lost():
    """There is nothing to go on with: no pod of the old revision can start any more."""
    world = World(raw_spec(rollout={"paused": True}))
    world.settle()
    world.now += 60
    world.lose("")
    world.settle()
    assert "" not in keys_of_pods(world)


def test_groups_whose_key_is_lost_serve_on_and_are_not_made_again(world):
    world.lose("")
    world.round()  # a new key
    world.round()  # a new revision
    world.unschedulable = True
    world.fail("chat-p-0-0-0")
    actions = [text for _ in range(3) for text in world.round()]
    assert not [text for text in actions if text.startswith("chat-p-0-1")]
    assert {"chat-p-1-0-0", "chat-d-0-0-0"} <= set(world.pods)
    assert not world.pods["chat-p-1-0-0"].draining
    world.unschedulable = False
    world.settle()
    assert "" not in keys_of_pods(world)


def test_what_cannot_be_made_again_is_reported(world):
    refused = ScopeFailure("QuotaExceeded", "exceeded quota: secrets", 1, world.now + 60)
    world.failures = {"keys": refused}
    world.lose("")
    world.fail("chat-p-0-0-0")
    assert set(problems(world)) == {"QuotaExceeded", "SecretLost"}
    texts = [problem.message for problem in world.plan().problems]
    assert any("chat-control is gone" in text for text in texts)
    assert not any("pod" in str(action).split()[:2] for action in world.plan().actions)


def test_a_key_of_which_the_ring_alone_was_written_is_made_anew(world):
    """The operator died between the two writes."""
    world.keys = dataclasses.replace(world.keys, ring=frozenset({"", "a" * 10}), active="a" * 10)
    assert str(world.plan().actions[0]) == "make a control key"
    world.settle()
    [key] = keys_of_pods(world)
    assert key not in ("", "a" * 10)
    assert world.keys.ring == {key}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (ControlKeys({"": KeySecret("u")}, frozenset({""}), ""), ""),
        (ControlKeys({"": KeySecret("u")}, frozenset({"", "b" * 10}), "b" * 10), "b" * 10),
        (ControlKeys({}, None, None), "c" * 10),  # no ring: the newest revision's
        (None, "c" * 10),
    ],
)
def test_the_active_key(world, keys, expected):
    [stored] = world.revisions.values()
    newer = dataclasses.replace(stored, digest="n", number=9, data={"key": "c" * 10})
    seen = Observed(revisions={stored.digest: stored, "n": newer}, keys=keys)
    assert keyring.active(seen) == expected
    assert keyring.active(Observed()) == ""


def test_an_upgrade_makes_what_is_missing_and_leaves_every_pod_alone(world):
    """Of the release before there is the one Secret."""
    world.keys = ControlKeys({"": KeySecret("u")}, held=frozenset({""}))
    assert [str(action) for action in world.plan().actions] == [
        "write the ring of 1 keys",
        "make the key of the compile cache",
    ]
    world.settle()
    assert keys_of_pods(world) == {""}


def test_a_lost_first_key_of_pods_that_have_read_it_is_never_made_under_its_name(world):
    world.keys = ControlKeys()  # the ring is lost as well, and the operator started anew
    [made] = [a for a in world.plan().actions if str(a).startswith("make a control")]
    assert not made.first
    world.pods = {}
    [made] = [a for a in world.plan().actions if str(a).startswith("make the first")]
    assert made.first


def test_keys_are_compiled_for_first_where_the_volume_is_shared():
    """The Job of the new revision finds everything there: the cache has a key of its own."""
    world = World(raw_spec(compileCache=SHARED))
    world.settle()
    world.now += 60
    world.rotate = "now"
    world.settle()
    [key] = keys_of_pods(world)
    [stored] = [item for item in world.revisions.values() if item.key == key]
    spec = stored.data["roles"]["decode"]["template"]["spec"]
    sources = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    assert sources == {"keys": f"chat-control-{key}", "cache-key": "pds-cache-key-cache"}
    for container in (*spec["containers"], *spec["initContainers"]):
        assert {"name": "PDS_CACHE_KEY_DIR", "value": "/etc/pds/cache-key"} in container["env"]


def test_keys_of_strangers_count_for_nothing(world):
    pod = next(iter(world.pods.values()))
    world.pods["stranger"] = dataclasses.replace(
        pod, name="stranger", uid="other", owner="another", key="f" * 10, group=7
    )
    assert not world.plan_writes()
    assert OWNER.uid == pod.owner
