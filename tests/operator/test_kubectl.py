"""The kubectl plugin, with a kubectl that answers from memory."""

import pytest
from pds_operator import revision
from pds_operator.kubectl import commands
from plugin import output, pod, stored
from typer.testing import CliRunner
from worlds import raw_spec


def test_pause_and_resume_patch_the_spec_and_nothing_else(kubectl):
    kubectl.answers["patch pdserving chat"] = {}
    assert output("pause", "chat", "-n", "team") == "chat: rollouts are paused\n"
    assert output("resume", "chat", "-n", "team") == "chat: rollouts go on\n"
    assert kubectl.patches() == [
        ("chat", {"spec": {"rollout": {"paused": True}}}),
        ("chat", {"spec": {"rollout": {"paused": None}}}),
    ]
    assert all(words[-2:] == ["-n", "team"] for words in kubectl.asked)


def test_what_kubectl_says_is_reported(kubectl):
    result = CliRunner().invoke(commands.app, ["pause", "chat"])
    assert result.exit_code == 1
    assert "no answer to" in result.output


FIRST = raw_spec(image="engine:1", engine={"chunkSize": 64})
SECOND = raw_spec(image="engine:2", prefill={"replicas": 5})
THIRD = raw_spec(image="engine:3", unified={"replicas": 1}, prefill=None, decode=None)


@pytest.fixture
def three(kubectl):
    """Three revisions, of which the third has failed and the second serves."""
    second = f"chat-{revision.digest(SECOND)}"
    kubectl.answers["get pdserving chat"] = {
        "spec": THIRD,
        "status": {"currentRevision": second, "targetRevision": second},
    }
    kubectl.answers["get controllerrevisions"] = {
        "items": [
            stored(THIRD, 3, failed="CrashLoop: chat-u-0-2-0 ended"),
            stored(FIRST, 1, served="2026-01-01T00:00:00Z"),
            stored(SECOND, 2, served="2026-01-02T00:00:00Z"),
        ]
    }
    kubectl.answers["patch"] = {}
    return kubectl


def test_history_says_what_serves_and_what_has_failed(three):
    lines = [line.split(maxsplit=3) for line in output("history", "chat").splitlines()[1:]]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert [line[2] for line in lines] == ["engine:1", "engine:2", "engine:3"]
    assert [line[3] for line in lines] == [
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z   target, current",
        "spec, failed: CrashLoop: chat-u-0-2-0 ended",
    ]


def test_undo_writes_the_spec_that_served_last(three):
    output("undo", "chat")
    [(_, patch)] = three.patches()
    assert patch == {"spec": {"image": "engine:2", "unified": None, "prefill": {}, "decode": {}}}
    now = revision.restored(THIRD, revision.affecting(SECOND))
    assert revision.digest(now) == revision.digest(SECOND)


def test_undo_goes_back_to_what_is_named(three):
    three.answers["get pdserving chat"]["spec"] = SECOND
    output("undo", "chat", "--to", "1")
    assert three.patches()[0][1] == {"spec": {"image": "engine:1", "engine": {"chunkSize": 64}}}
    result = CliRunner().invoke(commands.app, ["undo", "chat", "--to", "9"])
    assert (result.exit_code, "no revision 9" in result.output) == (1, True)


def test_retry_takes_the_mark_of_failure_away(three):
    output("retry", "chat")
    assert three.patches() == [
        (
            f"chat-{revision.digest(THIRD)}",
            {"metadata": {"annotations": {"pdserving.io/failed": None}}},
        )
    ]
    three.answers["get pdserving chat"]["spec"] = SECOND
    result = CliRunner().invoke(commands.app, ["retry", "chat"])
    assert (result.exit_code, "not marked as failed" in result.output) == (1, True)


KEY = "0123456789"


@pytest.fixture
def rotated(three):
    """The same, after a rotation of keys: the third has failed with the new one too."""
    three.answers["get controllerrevisions"]["items"] += [
        stored(SECOND, 4, key=KEY, served="2026-01-03T00:00:00Z"),
        stored(THIRD, 5, key=KEY, failed="CrashLoop: chat-u-0-2-0 ended"),
    ]
    return three


def test_the_revision_of_the_spec_is_the_one_with_the_keys_of_now(rotated):
    states = [line.split(maxsplit=3)[3:] for line in output("history", "chat").splitlines()[1:]]
    assert [["spec" in text for text in each] for each in states].count([True]) == 1
    assert "spec, failed" in states[4][0]
    output("retry", "chat")
    [(name, _)] = rotated.patches()
    assert name == f"chat-{revision.digest(THIRD, KEY)}"


def test_undo_is_never_to_the_same_spec_with_older_keys(rotated):
    rotated.answers["get pdserving chat"]["spec"] = SECOND
    output("undo", "chat")
    [(_, patch)] = rotated.patches()
    assert patch["spec"]["image"] == "engine:1"


def test_keys_are_rotated_by_an_annotation_and_one_rotation_at_a_time(rotated):
    new = revision.digest(THIRD, KEY)
    have = {"pdserving.io/key": KEY}
    rotated.answers["get pods"] = {"items": [pod("chat-p-0-0-0", new, have)]}
    assert "new control keys" in output("rotate-keys", "chat", "-n", "team")
    [(name, patch)] = rotated.patches()
    [(annotation, moment)] = patch["metadata"]["annotations"].items()
    assert (name, list(patch), annotation) == ("chat", ["metadata"], "pdserving.io/rotate-keys")
    assert moment.endswith("Z")
    rotated.answers["get pods"]["items"].append(pod("chat-d-0-0-0", "old", {}))
    result = CliRunner().invoke(commands.app, ["rotate-keys", "chat"])
    assert (result.exit_code, "1 pods have older ones (chat-d-0-0-0)" in result.output) == (1, True)
    assert len(rotated.patches()) == 1


def test_restart_is_a_new_revision(three):
    output("restart", "chat")
    [(_, patch)] = three.patches()
    assert list(patch["spec"]) == ["restartedAt"]
    assert revision.digest({**SECOND, **patch["spec"]}) != revision.digest(SECOND)


def test_status_is_a_tree_with_what_is_under_way(kubectl):
    now = revision.digest(SECOND)
    draining = pod("chat-p-1-0-0", "old", {"pdserving.io/draining": "true"})
    draining["metadata"]["annotations"]["pdserving.io/drain-deadline"] = "2026-01-01T00:01:00Z"
    router = {
        "metadata": {"name": "chat-router-x", "labels": {"pdserving.io/role": "router"}},
        "status": {},
    }
    stranger = {**router, "metadata": {**router["metadata"], "name": "stranger"}}
    kubectl.answers["get pdserving chat"] = {
        "metadata": {"namespace": "team"},
        "status": {
            "endpoint": "http://chat.team",
            "prefill": {"summary": "1/1", "updated": 1, "draining": 1},
            "decode": {"summary": "1/1", "updated": 1},
            "router": {"desired": 1, "ready": 1},
        },
    }
    kubectl.answers["get pods"] = {
        "items": [pod("chat-p-0-1-0", now), draining, pod("chat-d-0-0-0", now), router, stranger]
    }
    kubectl.answers["get --raw /api/v1/namespaces/team/pods/stranger:8000/proxy"] = {
        "backends": [{"pod": "chat-d-0-0-0", "in_flight": "many"}]
    }
    kubectl.answers["get --raw /api/v1/namespaces/team/pods/chat-router-x:8000/proxy"] = {
        "backends": [
            {"pod": "chat-p-1-0-0", "in_flight": 3},
            {
                "pod": "chat-d-0-0-0",
                "in_flight": 4,
                "startup": {"import": 2.04, "weights": 11.51, "pages": 0.3},
            },
        ]
    }
    lines = output("status", "chat").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("ROLE"))
    assert [line.split() for line in lines[start + 1 :]] == [
        ["prefill", "1", "updated,", "1", "draining", "1/1"],
        ["chat-p-0-1-0", now, "1", "up", "yes"],
        ["chat-p-1-0-0", "old", "0", "draining", "until", "2026-01-01T00:01:00Z", "no", "3"],
        ["decode", "1", "updated", "1/1"],
        ["chat-d-0-0-0", now, "0", "up", "yes", "4"],
        ["router", "1/1"],
        [],
        ["START", "SECONDS", "IMPORT", "WEIGHTS", "PAGES"],
        ["chat-d-0-0-0", "13.9", "2.0", "11.5", "0.3"],
    ]


def test_an_edit_that_nobody_has_looked_at_is_reported(kubectl):
    when = {"lastTransitionTime": "2026-01-01T00:00:00Z", "message": ""}
    seen = [{"type": "Progressing", "reason": "Complete", "status": "False"} | when]
    kubectl.answers["get pdserving chat"] = {
        "metadata": {"namespace": "team", "generation": 3},
        "status": {"observedGeneration": 2, "conditions": seen},
    }
    kubectl.answers["get pods"] = {"items": []}
    for command in ("status", "plan"):
        lines = output(command, "chat").splitlines()[:2]
        assert any("generation 3 is asked for, generation 2 was seen last" in x for x in lines)
    kubectl.answers["get pdserving chat"]["status"]["observedGeneration"] = 3
    assert "generation" not in output("plan", "chat")
