"""How far warm-ups are, as `kubectl pds status` shows it."""

import json

import pytest
from pds_operator.kubectl import warming
from pds_operator.kubectl.warming import Warming
from plugin import output, pod

STEP = {"artefact": "before", "n": 12, "of": 31, "seconds": 4.1, "left": 40.2, "source": "built"}
LOG = "compiler: note\n" + json.dumps({**STEP, "n": 11}) + "\n" + json.dumps(STEP)
BEGUN = {"name": "warmup", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}


def beginning(name: str, *statuses: dict[str, object]) -> dict[str, object]:
    status = {"phase": "Pending", "conditions": [], "initContainerStatuses": list(statuses)}
    return {**pod(name, "r1"), "status": status}


def job() -> dict[str, object]:
    """Its second step runs, of the two before the last."""
    over = {"name": "prefill-0", "state": {"terminated": {"exitCode": 0}}}
    waits = {"name": "decode-0", "state": {"waiting": {"reason": "PodInitializing"}}}
    runs = {**BEGUN, "name": "prefill-1"}
    return {
        "metadata": {"name": "chat-r1-warmup-x", "labels": {"pdserving.io/role": "warmup"}},
        "status": {"initContainerStatuses": [over, runs], "containerStatuses": [waits]},
    }


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "nothing is compiled yet"),
        ('{"message": "loading"}\nnot JSON\n', "nothing is compiled yet"),
        (LOG, "12 of 31, 40 s left"),
        (LOG + '\n{"level": "warning", "message": "slow"}', "12 of 31, 40 s left"),
        (json.dumps({**STEP, "stages": [1]}), "stage 1: 12 of 31, 40 s left"),
        (json.dumps({**STEP, "stages": [0, 1, 2]}), "stages 0 to 2: 12 of 31, 40 s left"),
        (json.dumps({**STEP, "stages": [1], "left": None}), "stage 1: 12 of 31"),
        (json.dumps({**STEP, "n": -1}), "nothing is compiled yet"),
        (json.dumps({**STEP, "n": "\u001b[2J"}), "nothing is compiled yet"),
    ],
)
def test_the_last_step_of_a_log_is_told(log: str, said: str) -> None:
    assert warming.progress(log) == said


def test_what_warms_up_is_seen_in_engines_and_in_jobs() -> None:
    engine = {"name": "engine", "state": {"running": {}}}
    sidecar = {"name": "proxy", "state": {"running": {}}}
    up = {**pod("chat-d-0-0-0", "r1")}
    up["status"] = {**up["status"], "containerStatuses": [engine]}
    pods = [job(), up, beginning("chat-p-0-0-1", sidecar, BEGUN)]
    assert warming.warming(pods) == [
        Warming("chat-p-0-0-1", "warmup"),
        Warming("chat-r1-warmup-x", "prefill-1"),
    ]


def test_status_shows_how_far_each_stage_is(kubectl) -> None:
    kubectl.answers["get pdserving chat"] = {"metadata": {"namespace": "team"}, "status": {}}
    kubectl.answers["get pods"] = {
        "items": [beginning(f"chat-p-0-0-{index}", BEGUN) for index in (0, 1)]
    }
    log = "get --raw /api/v1/namespaces/team/pods/chat-p-0-0-1/log?container=warmup&tailLines=50"
    kubectl.answers[log] = json.dumps({**STEP, "stages": [1]})
    lines = output("status", "chat").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("WARM-UP"))
    assert lines[start + 2] == "chat-p-0-0-1   warmup      stage 1: 12 of 31, 40 s left"
    # A log that this user may not read, in the API server's words.
    assert lines[start + 1].startswith("chat-p-0-0-0   warmup      no answer to")


def test_status_says_nothing_of_warm_ups_where_none_runs(kubectl) -> None:
    kubectl.answers["get pdserving chat"] = {"metadata": {"namespace": "team"}, "status": {}}
    kubectl.answers["get pods"] = {"items": [pod("chat-p-0-0-0", "r1")]}
    assert "WARM-UP" not in output("status", "chat")
