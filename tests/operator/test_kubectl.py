"""The kubectl plugin, with a kubectl that answers from memory."""

import json
import subprocess

import pytest
from pds_operator import kubectl, revision
from typer.testing import CliRunner
from worlds import raw_spec


class Kubectl:
    """Answers by the first words of a command; keeps what it was asked to do."""

    def __init__(self):
        self.answers: dict[str, object] = {}
        self.asked: list[list[str]] = []

    def run(self, words, **_):
        words = words[1:]
        assert "json" in words or "--raw" in words
        self.asked.append([word for word in words if word not in ("-o", "json")])
        key = next((key for key in self.answers if " ".join(words).startswith(key)), None)
        if key is None:
            return subprocess.CompletedProcess(words, 1, "", f"no answer to {words}")
        return subprocess.CompletedProcess(words, 0, json.dumps(self.answers[key]), "")

    def patches(self):
        return [
            (words[2], json.loads(words[words.index("-p") + 1]))
            for words in self.asked
            if words[0] == "patch"
        ]


@pytest.fixture
def cluster(monkeypatch):
    fake = Kubectl()
    fake.answers |= {"get pdservingroles": {"items": []}, "get pdservings --": {"items": []}}
    monkeypatch.setattr(kubectl.subprocess, "run", fake.run)
    monkeypatch.setattr(kubectl.shutil, "which", lambda name: f"/bin/{name}")
    return fake


def told(*words: str) -> str:
    result = CliRunner().invoke(kubectl.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pause_and_resume_patch_the_spec_and_nothing_else(cluster):
    cluster.answers["patch pdserving chat"] = {}
    assert told("pause", "chat", "-n", "team") == "chat: rollouts are paused\n"
    assert told("resume", "chat", "-n", "team") == "chat: rollouts go on\n"
    assert cluster.patches() == [
        ("chat", {"spec": {"rollout": {"paused": True}}}),
        ("chat", {"spec": {"rollout": {"paused": None}}}),
    ]
    assert all(words[-2:] == ["-n", "team"] for words in cluster.asked)


def test_what_kubectl_says_is_told(cluster):
    result = CliRunner().invoke(kubectl.app, ["pause", "chat"])
    assert result.exit_code == 1
    assert "no answer to" in result.output


def stored(raw, number, key="", **annotations):
    digest = revision.digest(raw, key)
    return {
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"chat-{digest}",
            "uid": f"uid-{digest}",
            "annotations": {f"pdserving.io/{key}": value for key, value in annotations.items()},
        },
        "revision": number,
        "data": {"spec": revision.affecting(raw), "key": key},
    }


FIRST = raw_spec(image="engine:1", engine={"chunkSize": 64})
SECOND = raw_spec(image="engine:2", prefill={"replicas": 5})
THIRD = raw_spec(image="engine:3", unified={"replicas": 1}, prefill=None, decode=None)


@pytest.fixture
def three(cluster):
    """Three revisions, of which the third has failed and the second serves."""
    second = f"chat-{revision.digest(SECOND)}"
    cluster.answers["get pdserving chat"] = {
        "spec": THIRD,
        "status": {"currentRevision": second, "targetRevision": second},
    }
    cluster.answers["get controllerrevisions"] = {
        "items": [
            stored(THIRD, 3, failed="CrashLoop: chat-u-0-2-0 ended"),
            stored(FIRST, 1, served="2026-01-01T00:00:00Z"),
            stored(SECOND, 2, served="2026-01-02T00:00:00Z"),
        ]
    }
    cluster.answers["patch"] = {}
    return cluster


def test_history_says_what_serves_and_what_has_failed(three):
    lines = [line.split(maxsplit=3) for line in told("history", "chat").splitlines()[1:]]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert [line[2] for line in lines] == ["engine:1", "engine:2", "engine:3"]
    assert [line[3] for line in lines] == [
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z   target, current",
        "spec, failed: CrashLoop: chat-u-0-2-0 ended",
    ]


def test_undo_writes_the_spec_that_served_last(three):
    told("undo", "chat")
    [(_, patch)] = three.patches()
    assert patch == {"spec": {"image": "engine:2", "unified": None, "prefill": {}, "decode": {}}}
    now = revision.restored(THIRD, revision.affecting(SECOND))
    assert revision.digest(now) == revision.digest(SECOND)


def test_undo_goes_back_to_what_is_named(three):
    three.answers["get pdserving chat"]["spec"] = SECOND
    told("undo", "chat", "--to", "1")
    assert three.patches()[0][1] == {"spec": {"image": "engine:1", "engine": {"chunkSize": 64}}}
    result = CliRunner().invoke(kubectl.app, ["undo", "chat", "--to", "9"])
    assert (result.exit_code, "no revision 9" in result.output) == (1, True)


def test_retry_takes_the_mark_of_failure_away(three):
    told("retry", "chat")
    assert three.patches() == [
        (
            f"chat-{revision.digest(THIRD)}",
            {"metadata": {"annotations": {"pdserving.io/failed": None}}},
        )
    ]
    three.answers["get pdserving chat"]["spec"] = SECOND
    result = CliRunner().invoke(kubectl.app, ["retry", "chat"])
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
    states = [line.split(maxsplit=3)[3:] for line in told("history", "chat").splitlines()[1:]]
    assert [["spec" in text for text in each] for each in states].count([True]) == 1
    assert "spec, failed" in states[4][0]
    told("retry", "chat")
    [(name, _)] = rotated.patches()
    assert name == f"chat-{revision.digest(THIRD, KEY)}"


def test_undo_is_never_to_the_same_spec_with_older_keys(rotated):
    rotated.answers["get pdserving chat"]["spec"] = SECOND
    told("undo", "chat")
    [(_, patch)] = rotated.patches()
    assert patch["spec"]["image"] == "engine:1"


def test_keys_are_rotated_by_an_annotation_and_one_rotation_at_a_time(rotated):
    new = revision.digest(THIRD, KEY)
    have = {"pdserving.io/key": KEY}
    rotated.answers["get pods"] = {"items": [pod("chat-p-0-0-0", new, have)]}
    assert "new control keys" in told("rotate-keys", "chat", "-n", "team")
    [(name, patch)] = rotated.patches()
    [(annotation, moment)] = patch["metadata"]["annotations"].items()
    assert (name, list(patch), annotation) == ("chat", ["metadata"], "pdserving.io/rotate-keys")
    assert moment.endswith("Z")
    rotated.answers["get pods"]["items"].append(pod("chat-d-0-0-0", "old", {}))
    result = CliRunner().invoke(kubectl.app, ["rotate-keys", "chat"])
    assert (result.exit_code, "1 pods have older ones (chat-d-0-0-0)" in result.output) == (1, True)
    assert len(rotated.patches()) == 1


def test_restart_is_a_new_revision(three):
    told("restart", "chat")
    [(_, patch)] = three.patches()
    assert list(patch["spec"]) == ["restartedAt"]
    assert revision.digest({**SECOND, **patch["spec"]}) != revision.digest(SECOND)


def pod(name, revision, labels=()):
    _, letter, group, attempt, rank = name.split("-")
    role = {"p": "prefill", "d": "decode"}[letter]
    ready = [{"type": t, "status": "True"} for t in ("PodScheduled", "ContainersReady", "Ready")]
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "labels": {
                "pdserving.io/name": "chat",
                "pdserving.io/role": role,
                "pdserving.io/group": group,
                "pdserving.io/attempt": attempt,
                "pdserving.io/rank-pod": rank,
                "pdserving.io/revision": revision,
                **dict(labels),
            },
            "annotations": {},
        },
        "status": {
            "phase": "Running",
            "conditions": ready,
            "containerStatuses": [{"name": "engine", "started": True}],
        },
    }


def test_status_is_a_tree_with_what_is_under_way(cluster):
    now = revision.digest(SECOND)
    draining = pod("chat-p-1-0-0", "old", {"pdserving.io/draining": "true"})
    draining["metadata"]["annotations"]["pdserving.io/drain-deadline"] = "2026-01-01T00:01:00Z"
    router = {
        "metadata": {"name": "chat-router-x", "labels": {"pdserving.io/role": "router"}},
        "status": {},
    }
    stranger = {**router, "metadata": {**router["metadata"], "name": "stranger"}}
    cluster.answers["get pdserving chat"] = {
        "metadata": {"namespace": "team"},
        "status": {
            "endpoint": "http://chat.team",
            "prefill": {"summary": "1/1", "updated": 1, "draining": 1},
            "decode": {"summary": "1/1", "updated": 1},
            "router": {"desired": 1, "ready": 1},
        },
    }
    cluster.answers["get pods"] = {
        "items": [pod("chat-p-0-1-0", now), draining, pod("chat-d-0-0-0", now), router, stranger]
    }
    cluster.answers["get --raw /api/v1/namespaces/team/pods/stranger:8000/proxy"] = {
        "backends": [{"pod": "chat-d-0-0-0", "in_flight": "many"}]
    }
    cluster.answers["get --raw /api/v1/namespaces/team/pods/chat-router-x:8000/proxy"] = {
        "backends": [
            {"pod": "chat-p-1-0-0", "in_flight": 3},
            {"pod": "chat-d-0-0-0", "in_flight": 4},
        ]
    }
    lines = told("status", "chat").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("ROLE"))
    assert [line.split() for line in lines[start + 1 :]] == [
        ["prefill", "1", "updated,", "1", "draining", "1/1"],
        ["chat-p-0-1-0", now, "1", "up", "yes"],
        ["chat-p-1-0-0", "old", "0", "draining", "until", "2026-01-01T00:01:00Z", "no", "3"],
        ["decode", "1", "updated", "1/1"],
        ["chat-d-0-0-0", now, "0", "up", "yes", "4"],
        ["router", "1/1"],
    ]


def test_plan_of_a_file_says_each_step_and_changes_nothing(cluster):
    old, new = raw_spec(image="engine:1"), raw_spec(image="engine:2")
    now = revision.digest(old)
    cluster.answers["apply --dry-run=server -f edit.yaml"] = {
        "kind": "PDServing",
        "metadata": {"name": "chat", "namespace": "team"},
        "spec": new,
    }
    cluster.answers["get pods"] = {
        "items": [pod(f"chat-{name}-0-0", now) for name in ("p-0", "p-1", "d-0")]
    }
    cluster.answers["get controllerrevisions"] = {
        "items": [stored(old, 1, served="2026-01-01T00:00:00Z")]
    }
    assert told("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(new)}, new; {now} served last",
        "  1. create 1 new prefill, create 1 new decode",
        "  2. drain 1 old prefill",
        "  3. create 1 new prefill",
        "  4. drain 1 old prefill, drain 1 old decode",
        "nothing left to do",
    ]
    cluster.answers["apply --dry-run=server -f edit.yaml"]["spec"] = {
        **new,
        "rollout": {"drainSeconds": 60, "partition": 1},
    }
    assert told("plan", "-f", "edit.yaml").splitlines()[-2:] == [
        "  2. drain 1 old prefill",
        "held at step 1 of 2",
    ]
    assert {words[0] for words in cluster.asked} == {"apply", "get"}
    assert all("--dry-run=server" in words for words in cluster.asked if words[0] == "apply")


def starting(name, revision):
    made = pod(name, revision)
    made["status"] = {"phase": "Pending", "conditions": []}
    return made


def test_plan_of_what_is_being_brought_out_says_what_is_under_way_and_then_comes(cluster):
    old, new = raw_spec(image="engine:1"), raw_spec(image="engine:2")
    was, now = revision.digest(old), revision.digest(new)
    cluster.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": new}
    left = pod("chat-p-0-0-0", was, {"pdserving.io/draining": "true"})
    cluster.answers["get pods"] = {
        "items": [
            left,
            pod("chat-p-1-0-0", was),
            pod("chat-d-0-0-0", was),
            pod("chat-p-2-0-0", now),
            starting("chat-d-1-0-0", now),
        ]
    }
    cluster.answers["get controllerrevisions"] = {
        "items": [stored(old, 1, served="2026-01-01T00:00:00Z"), stored(new, 2)]
    }
    assert told("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {now}, stored; {was} served last",
        "     under way: 1 new prefill not serving yet, 1 prefill drain, "
        "1 new decode not serving yet",
        "  1. create 1 new prefill",
        "  2. drain 1 old prefill, drain 1 old decode",
        "nothing left to do",
    ]


def test_plan_of_a_role_that_is_scaled_by_others_counts_by_what_they_ask(cluster):
    raw = raw_spec(image="engine:1", prefill={})
    now = revision.digest(raw)
    cluster.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": raw}
    child = {"metadata": {"name": "chat-prefill"}, "spec": {"replicas": 3}}
    cluster.answers["get pdservingroles"] = {"items": [child]}
    cluster.answers["get pods"] = {"items": [pod(f"chat-{n}-0-0", now) for n in ("p-0", "d-0")]}
    cluster.answers["get controllerrevisions"] = {"items": [stored(raw, 1)]}
    assert "  1. create 2 new prefill" in told("plan", "-f", "edit.yaml").splitlines()


def test_plan_of_what_no_operator_makes_says_so(cluster):
    engine = {"name": "engine", "env": [{"name": "PDS_X", "value": "1"}]}
    raw = raw_spec(decode={"replicas": 1, "podTemplate": {"spec": {"containers": [engine]}}})
    cluster.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": raw}
    cluster.answers["get pods"] = {"items": []}
    cluster.answers["get controllerrevisions"] = {"items": []}
    result = CliRunner().invoke(kubectl.app, ["plan", "-f", "edit.yaml"])
    assert result.exit_code == 1
    assert "InvalidSpec" in result.output
    assert "PDS_X" in result.output


def test_plan_tells_that_routers_are_replaced(cluster):
    old = raw_spec(image="engine:1")
    new = {**old, "router": {"image": "router:2"}}
    names = ("p-0", "p-1", "d-0")
    items = [pod(f"chat-{name}-0-0", revision.digest(old)) for name in names]
    cluster.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": new}
    cluster.answers["get pdservings --"] = {"items": [{"spec": old}]}
    cluster.answers["get pods"] = {"items": items}
    cluster.answers["get controllerrevisions"] = {"items": [stored(old, 1)]}
    assert told("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(old)}",
        "     routers are replaced first",
        "nothing left to do",
    ]


def test_an_edit_that_nobody_has_looked_at_is_told(cluster):
    when = {"lastTransitionTime": "2026-01-01T00:00:00Z", "message": ""}
    seen = [{"type": "Progressing", "reason": "Complete", "status": "False"} | when]
    cluster.answers["get pdserving chat"] = {
        "metadata": {"namespace": "team", "generation": 3},
        "status": {"observedGeneration": 2, "conditions": seen},
    }
    cluster.answers["get pods"] = {"items": []}
    for command in ("status", "plan"):
        lines = told(command, "chat").splitlines()[:2]
        assert any("generation 3 is asked for, generation 2 was seen last" in x for x in lines)
    cluster.answers["get pdserving chat"]["status"]["observedGeneration"] = 3
    assert "generation" not in told("plan", "chat")


def test_plan_of_a_scaled_spec_makes_no_revision(cluster):
    old = raw_spec(image="engine:1")
    cluster.answers["apply"] = {
        "kind": "PDServing",
        "metadata": {"name": "chat"},
        "spec": {**old, "prefill": {"replicas": 4}, "decode": {"replicas": 0}},
    }
    names = ("p-0", "p-1", "d-0")
    cluster.answers["get pods"] = {
        "items": [pod(f"chat-{name}-0-0", revision.digest(old)) for name in names]
    }
    cluster.answers["get controllerrevisions"] = {"items": [stored(old, 1)]}
    assert told("plan", "chat", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(old)}",
        "  1. create 2 new prefill, drain 1 new decode",
        "nothing left to do",
    ]
