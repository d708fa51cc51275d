"""A decode group of two dp ranks on two pods, of four whole experts each: its answers, and what its
losses cost. Prefill is one rank with all experts.

The times are printed (`pytest -rP`).
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from made_models import EXPERTS, made, questions
from pds_cluster.testing import Cluster
from reference import assert_equals_transformers
from serving import Object, Serving, served
from streams import REST, Question, StreamOutcome, crowd
from workers import WorkerProcess, comes_back, label, newest, why

pytestmark = pytest.mark.cluster

CLIENTS = 16
MAX_RUNNING = 6
"""Of one dp rank: more than so many requests at once run on two."""
PAUSE = 2.0
"""Seconds that a client waits who was refused: all of them, until the group is back."""
SPEC = {
    "engine": {
        "maxModelLen": 2048,
        "chunkSize": 128,
        "kvMemoryBytes": 64 << 20,
        "maxRunning": MAX_RUNNING,
    },
    "decode": {
        "replicas": 1,
        "parallelism": {"dp": 2, "ep": True},
        "resources": {"requests": {"cpu": "100m"}},
    },
}


@pytest.fixture(scope="module")
def model() -> Path:
    return made("Qwen3Moe", **EXPERTS)


@pytest.fixture(scope="module")
def wide(operator: Cluster, namespace: str, model: Path) -> Iterator[Serving]:
    """A pair whose only decode group has a pod for each of its two dp ranks."""
    source = {"name": "tiny", "source": {"path": str(model)}, "dtype": "float32"}
    with served(operator, namespace, "wide", model=source, **SPEC) as serving:
        yield serving


@pytest.fixture(scope="module")
def asked(wide: Serving, model: Path) -> list[Question]:
    """Chats whose answers are known from transformers."""
    return questions(wide, model, 6)


def uids(pods: list[Object]) -> set[str]:
    return {str(pod["metadata"]["uid"]) for pod in pods}


def running(serving: Serving) -> int:
    """Requests that hold a slot in the decode group."""
    with suppress(OSError):
        return int(serving.states("decode")[0]["running"])
    return 0


def refused(outcomes: list[StreamOutcome], back: float) -> list[StreamOutcome]:
    """Requests that found no group: none of those that began when it was `back`.

    Of all others, every answer is right and whole.
    """
    told = [each for each in outcomes if each.error.startswith("HTTP 503")]
    assert [each.trouble for each in outcomes if each.trouble and each not in told] == []
    assert all(each.began < back for each in told)
    return told


def test_answers_equal_transformers(wide: Serving, client: httpx.Client, model: Path) -> None:
    assert_equals_transformers(wide, client, model)


def test_a_group_on_two_pods_is_reported_as_one(wide: Serving, client: httpx.Client) -> None:
    pods = newest(wide, "decode")
    assert [pod["metadata"]["name"] for pod in pods] == ["wide-d-0-0-0", "wide-d-0-0-1"]
    state = wide.state(pods[0])
    assert (state["ready"], state["ranks_ready"]) == (True, 2)
    found = {key: wide.get()["status"]["decode"][key] for key in ("desired", "ready", "summary")}
    assert found == {"desired": 1, "ready": 1, "summary": "1/1"}
    other = f"http://{pods[1]['status']['podIP']}:8000"
    assert client.get(f"{other}/readyz").status_code == 200
    assert 'pds_rank_ready{rank="1"} 1.0' in client.get(f"{other}/metrics").text
    budget = wide.cluster.get("pdb", "wide-decode", wide.namespace)
    assert budget["spec"]["minAvailable"] == 1


def test_a_killed_rank_restarts_its_group_as_one_and_breaks_no_stream(
    wide: Serving, asked: list[Question]
) -> None:
    pods = newest(wide, "decode")
    with crowd(wide.url, asked, clients=CLIENTS, pause=PAUSE, rest=REST / 5) as clients:
        clients.goes_on()
        wide.until("at work on both ranks", lambda: running(wide) > MAX_RUNNING, 30)
        killed = WorkerProcess(pods[1], 1).kill()
        back = comes_back(wide, "decode", 0, label(pods[0], "attempt") + 1, killed, pods=2)
        clients.goes_on()
    told = refused(clients.outcomes, killed + back)
    assert not uids(pods) & uids(newest(wide, "decode"))
    reason = why(wide)
    assert "rank 1 (stage 0, dp rank 1)" in reason, reason
    waited = [each for each in clients.outcomes if each.first and each.began < killed < each.ended]
    assert waited
    last = max((each.ended for each in told), default=killed)
    print(f"{len(clients.outcomes)} requests; {len(waited)} streams were open, and went on: the")
    print(f"  slowest took {max(each.seconds for each in waited):.1f} s. {len(told)} requests")
    print(f"  were refused, for {last - killed:.1f} s; the group was back in {back:.1f} s")


def test_a_deleted_pod_drains_the_whole_group(wide: Serving, asked: list[Question]) -> None:
    pods = newest(wide, "decode")
    with crowd(wide.url, asked, clients=CLIENTS, pause=PAUSE, rest=REST) as clients:
        clients.goes_on()
        began = time.monotonic()
        name = pods[1]["metadata"]["name"]
        wide.cluster.kubectl("-n", wide.namespace, "delete", "pod", name, "--wait=false")
        back = comes_back(wide, "decode", 0, label(pods[0], "attempt") + 1, began, pods=2)
        clients.goes_on()
    told = refused(clients.outcomes, began + back)
    assert not uids(pods) & uids(newest(wide, "decode"))
    print(f"a pod of two deleted: {len(clients.outcomes)} requests, {len(told)} refused; the")
    print(f"  group was back in {back:.1f} s")
