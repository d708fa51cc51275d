"""`kubectl pds` with a kubectl that answers from memory."""

import json
import subprocess

import pytest
from pds_operator import revision
from pds_operator.kubectl import calls, commands
from typer.testing import CliRunner


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
        answer = self.answers[key]
        text = answer if isinstance(answer, str) else json.dumps(answer)  # or it is a log
        return subprocess.CompletedProcess(words, 0, text, "")

    def patches(self):
        return [
            (words[2], json.loads(words[words.index("-p") + 1]))
            for words in self.asked
            if words[0] == "patch"
        ]


def answering(monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """A Kubectl in place of the real one."""
    fake = Kubectl()
    fake.answers |= {"get pdservingroles": {"items": []}, "get pdservings --": {"items": []}}
    monkeypatch.setattr(calls.subprocess, "run", fake.run)
    monkeypatch.setattr(calls.shutil, "which", lambda name: f"/bin/{name}")
    return fake


def output(*words: str) -> str:
    result = CliRunner().invoke(commands.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


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
