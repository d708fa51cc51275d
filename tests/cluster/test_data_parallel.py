"""Two dp ranks as one group: a decode group on two pods, and one of role unified in one pod.

The times are printed (`pytest -rP`).
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from pds_cluster.testing import Cluster
from reference import assert_equals_transformers
from serving import COLD, Object, Serving, manifest
from streams import REST, LoadPhase, copies, crowd, known
from workers import WorkerProcess, comes_back, is_ready, label, newest, why

pytestmark = pytest.mark.cluster

CLIENTS = 16
MAX_RUNNING = 6
"""Of one dp rank: more than so many requests at once run on two."""
RANKS = {"replicas": 1, "parallelism": {"dp": 2}, "resources": {"requests": {"cpu": "100m"}}}
ENGINE = {
    "maxModelLen": 2048,
    "chunkSize": 128,
    "kvMemoryBytes": 64 << 20,
    "maxRunning": MAX_RUNNING,
    "delayer": {"restTicks": 1, "maxSeconds": 2.5},
}


@pytest.fixture(scope="module")
def both(operator: Cluster, namespace: str) -> Iterator[dict[str, Serving]]:
    """They start beside each other."""
    specs: dict[str, dict[str, Any]] = {
        "wide": {"decode": RANKS},
        "dense": {"prefill": None, "decode": None, "unified": {**RANKS, "ranksPerPod": 2}},
    }
    made = {
        name: Serving(operator, namespace, manifest(name, engine=ENGINE, **spec))
        for name, spec in specs.items()
    }
    began = time.monotonic()
    for serving in made.values():
        serving.apply()
    for serving in made.values():
        serving.settled(COLD)
        print(f"{serving.name} serves {time.monotonic() - began:.0f} s after it was asked for")
    yield made
    operator.kubectl("-n", namespace, "delete", "pds", *made, "--timeout=60s")


@pytest.fixture(scope="module")
def wide(both: dict[str, Serving]) -> Serving:
    """A pair whose decode group has a pod for each of its two dp ranks."""
    return both["wide"]


def uids(pods: list[Object]) -> set[str]:
    return {str(pod["metadata"]["uid"]) for pod in pods}


def running(serving: Serving) -> int:
    """Requests that hold a slot in the decode group."""
    with suppress(OSError):
        return int(serving.states("decode")[0]["running"])
    return 0


@pytest.mark.parametrize("name", ["dense", "wide"])
def test_answers_equal_transformers(
    both: dict[str, Serving], client: httpx.Client, name: str
) -> None:
    assert_equals_transformers(both[name], client)


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


def test_a_killed_rank_restarts_its_group_as_one_and_fails_no_stream(wide: Serving) -> None:
    questions = known(wide, at_least=8) + copies(wide, at_least=4, words=20)
    pods = newest(wide, "decode")
    with crowd(wide.url, questions, clients=CLIENTS) as clients:
        clients.goes_on()
        wide.until("at work on both ranks", lambda: running(wide) > MAX_RUNNING, 30)
        killed = WorkerProcess(pods[1], 1).kill()
        back = comes_back(wide, "decode", 0, label(pods[0], "attempt") + 1, killed, pods=2)
        clients.goes_on()
    assert clients.troubles == []
    after = newest(wide, "decode")
    assert not uids(pods) & uids(after)
    assert all(is_ready(pod) for pod in after)
    reason = why(wide)
    assert "rank 1 (stage 0, dp rank 1)" in reason, reason
    silent = max(each.seconds for each in clients.outcomes if each.began < killed < each.ended)
    open_ = sum(each.began < killed < each.ended for each in clients.outcomes)
    print(f"a rank of two killed under {CLIENTS} clients: {len(clients.outcomes)} right answers;")
    print(f"  {open_} were open, the longest took {silent:.1f} s; the group back in {back:.1f} s")


def test_a_deleted_pod_drains_the_whole_group(wide: Serving) -> None:
    questions = known(wide, at_least=4)
    pods = newest(wide, "decode")
    with crowd(wide.url, questions, clients=CLIENTS, rest=REST) as clients:
        clients.goes_on()
        began = time.monotonic()
        name = pods[1]["metadata"]["name"]
        wide.cluster.kubectl("-n", wide.namespace, "delete", "pod", name, "--wait=false")
        back = comes_back(wide, "decode", 0, label(pods[0], "attempt") + 1, began, pods=2)
        clients.goes_on()
    assert clients.troubles == []
    assert not uids(pods) & uids(newest(wide, "decode"))
    print(
        f"a pod of two deleted: {LoadPhase('load', began, began + back).summary(clients.outcomes)}"
    )
    print(f"  the group back in {back:.1f} s")
