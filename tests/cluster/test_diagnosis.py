"""The report on a failed test's namespace, from answers of kubectl that are made up."""

import json
from dataclasses import dataclass, field
from typing import Any

from pds_cluster import diagnosis
from pds_cluster.errors import ClusterError

SERVING = {
    "metadata": {"name": "chat", "generation": 3},
    "status": {
        "observedGeneration": 2,
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "NoPair", "message": "no\npair"}
        ],
    },
}


def event(second: int, message: str = "a group failed") -> dict[str, Any]:
    return {
        "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "lastTimestamp": f"2026-01-01T00:00:{second:02}Z",
        "involvedObject": {"kind": "PDServing", "name": "chat"},
        "type": "Warning",
        "reason": "FailedGroupReplaced",
        "message": message,
    }


def pod(name: str, ready: bool = True, restarts: int = 0, init: bool = False) -> dict[str, Any]:
    running = {"name": "engine", "restartCount": restarts, "state": {"running": {}}}
    warmup = {"name": "warmup", "restartCount": 0, "state": {"terminated": {"exitCode": 1}}}
    return {
        "metadata": {"name": name},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready), "message": "not ready"}],
            "initContainerStatuses": [warmup] if init else [],
            "containerStatuses": [running],
        },
    }


@dataclass
class Answers:
    """kubectl, with what it lists by kind, and a log that it has of every container."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: str = "a line"
    without: tuple[str, ...] = ()
    """Words that it complains of."""

    def kubectl(self, *words: str, timeout: float = 0) -> str:
        if lacking := [word for word in words if word in self.without]:
            raise ClusterError(f"no {lacking[0]} here", "ask another")
        if words[2] == "logs":
            return f"{words[3]} {words[5]}{' before' * ('--previous' in words)}: {self.log}"
        items = {"pods": self.pods, "events": self.events}.get(words[3], [SERVING])
        return json.dumps({"items": items})


def test_conditions_events_and_logs_are_reported():
    answers = Answers([pod("chat-p", restarts=1, init=True)], [event(1)])
    assert diagnosis.report(answers, "space").splitlines() == [
        "pdserving/chat: generation 3, observed 2",
        "  Ready=False NoPair: no pair",
        "events: 1 of 1",
        "  2026-01-01T00:00:01Z PDServing/chat Warning FailedGroupReplaced: a group failed",
        "pod/chat-p: Running",
        '  container warmup: 0 restarts, terminated {"exitCode": 1}',
        "  log of warmup:",
        "    chat-p warmup: a line",
        "  container engine: 1 restarts, running {}",
        "  log of engine before its restart:",
        "    chat-p engine before: a line",
        "  log of engine:",
        "    chat-p engine: a line",
    ]


def test_pods_that_are_not_ready_come_first():
    said = diagnosis.report(Answers([pod("well"), pod("ill", ready=False)]), "space")
    assert said.index("pod/ill") < said.index("pod/well")
    assert "Ready=False : not ready" in said


def test_the_newest_events_are_reported_in_order():
    said = diagnosis.report(Answers(events=[event(n) for n in reversed(range(50))]), "space")
    assert "events: 40 of 50" in said
    assert "00:00:09Z" not in said
    assert said.index("00:00:10Z") < said.index("00:00:49Z")


def test_what_cannot_be_had_says_why_and_hides_nothing_else():
    answers = Answers([pod("chat-p", restarts=1)], [event(1)], without=("events", "--previous"))
    said = diagnosis.report(answers, "space")
    assert "events: no events here ask another" in said
    assert "    no --previous here ask another" in said
    assert "    chat-p engine: a line" in said


def test_it_is_bounded():
    long = "\n".join("x" * 5000 for _ in range(5000))
    answers = Answers([pod(f"p{n}") for n in range(200)], [event(1, long)], log=long)
    said = diagnosis.report(answers, "space")
    assert len(said) <= diagnosis.MOST + 100
    assert said.splitlines()[-1].startswith("… and more")
    assert max(map(len, said.splitlines())) <= diagnosis.WIDTH + 2
