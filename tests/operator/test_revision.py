from pathlib import Path

import pytest
import yaml
from pds_operator import revision
from worlds import raw_spec

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_it_is_stable():
    assert revision.digest(raw_spec()) == "09a960b4e3"


def test_what_changes_no_pod_changes_nothing():
    base = revision.digest(raw_spec())
    for change in (
        {"prefill": {"replicas": 7}},
        {"router": {"replicas": 3}},
        {"rollout": {"drainSeconds": 60, "maxSurge": 2, "paused": True}},
        {"engine": {}},
        {"compileCache": None},
        {"scheduling": {"scheduleTimeoutSeconds": 5}},
    ):
        assert revision.digest(raw_spec(**change)) == base, change


def test_what_changes_a_pod_changes_it():
    changes = (
        {"image": "engine:2"},
        {"engine": {"chunkSize": 64}},
        {"prefill": {"replicas": 2, "parallelism": {"pp": 2}}},
        {"decode": {"replicas": 1, "resources": {"limits": {"cpu": 1}}}},
        {"rollout": {"drainSeconds": 61}},
        {"scheduling": {"priorityClassName": "high"}},
        {"restartedAt": "2026-01-01"},
        {"compileCache": {"volume": {"ephemeral": {}}}},
        {"prefill": None, "decode": None, "unified": {}},
    )
    digests = {revision.digest(raw_spec(**change)) for change in changes}
    assert len(digests | {revision.digest(raw_spec())}) == len(changes) + 1


def test_the_order_of_keys_does_not_matter():
    raw = raw_spec()
    assert revision.digest(dict(reversed(raw.items()))) == revision.digest(raw)


def test_restoring_keeps_what_makes_no_pod():
    old = raw_spec(
        image="engine:1",
        scheduling={"priorityClassName": "high"},
        compileCache={"volume": {"ephemeral": {}}},
    )
    now = raw_spec(
        image="engine:2",
        engine={"chunkSize": 64},
        prefill={"replicas": 7, "parallelism": {"pp": 2}},
        router={"replicas": 3},
        rollout={"drainSeconds": 5, "maxSurge": 2},
        scheduling={"scheduleTimeoutSeconds": 5},
    )
    back = revision.restored(now, revision.affecting(old))
    assert revision.digest(back) == revision.digest(old)
    assert back == {
        **old,
        "prefill": {"replicas": 7},
        "router": {"replicas": 3},
        "rollout": {"drainSeconds": 60, "maxSurge": 2},
        "scheduling": {"scheduleTimeoutSeconds": 5, "priorityClassName": "high"},
    }


@pytest.mark.parametrize(
    ("example", "digest"),
    [("chat", "0e4d113fa7"), ("chat-upgrade", "84e055879e"), ("unified", "fe907eeb00")],
)
def test_what_is_stored_keeps_its_name(example, digest):
    """If one of these changes, an upgrade of the operator restarts every pod."""
    raw = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())["spec"]
    assert revision.digest(raw) == digest


def test_a_field_that_a_new_version_adds_changes_no_revision_while_it_is_unset(monkeypatch):
    before = revision.digest(raw_spec())
    for name in ("WHOLE", "OF_ROLES", "OF_SCHEDULING", "OF_ROLLOUT"):
        monkeypatch.setattr(revision, name, (*getattr(revision, name), "newField"))
    assert revision.digest(raw_spec()) == before
    assert revision.digest(raw_spec(newField={"a": None, "b": {}})) == before
    assert revision.digest(raw_spec(newField=1)) != before
