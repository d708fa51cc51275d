"""The kubectl plugin, with a kubectl that answers from memory."""

import json
import subprocess

import pytest
from pds_operator import kubectl
from typer.testing import CliRunner


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
