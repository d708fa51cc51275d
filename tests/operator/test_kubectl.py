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
        assert words[-2:] == ["-o", "json"]
        self.asked.append(words[:-2])
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


def stored(raw, number, **annotations):
    digest = revision.digest(raw)
    return {
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"chat-{digest}",
            "uid": f"uid-{digest}",
            "annotations": {f"pdserving.io/{key}": value for key, value in annotations.items()},
        },
        "revision": number,
        "data": {"spec": revision.affecting(raw)},
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


def test_restart_is_a_new_revision(three):
    told("restart", "chat")
    [(_, patch)] = three.patches()
    assert list(patch["spec"]) == ["restartedAt"]
    assert revision.digest({**SECOND, **patch["spec"]}) != revision.digest(SECOND)
