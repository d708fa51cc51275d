"""A prefill group of two stages in two pods: its answers, what is reported of it, and its losses.

And a group of two dp ranks of two shards in one pod. The times are printed (`pytest -rP`).
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pds_cluster.testing import Cluster
from pds_operator.kubectl.commands import app as kubectl_pds
from reference import assert_equals_transformers
from serving import Object, Serving, served
from streams import StreamOutcome, ask, known
from typer.testing import CliRunner
from workers import LONG, WorkerProcess, amid_prefill, comes_back, leader, newest, why

pytestmark = pytest.mark.cluster

STEP_TIMEOUT = 5
KNOWN_WITHIN = 15.0
"""Seconds within which a client hears that the group that answered it is dead: half of what a
hand-over that nobody renews would take."""
RESOURCES = {"requests": {"cpu": "100m"}}
PREFILL = {"replicas": 1, "parallelism": {"pp": 2}, "resources": RESOURCES}
SPEC = {
    "engine": {
        "maxModelLen": 2048,
        "chunkSize": 128,
        "kvMemoryBytes": 64 << 20,
        "stepTimeoutSeconds": STEP_TIMEOUT,
        "prefixCache": False,  # the long prompt is computed whole every time
    },
    "prefill": PREFILL,
}


@pytest.fixture(scope="module")
def staged(operator: Cluster, namespace: str) -> Iterator[Serving]:
    """Not compiled, so that it is soon there again after each of its losses."""
    with served(operator, namespace, "staged", **SPEC) as serving:
        yield serving


def test_answers_equal_transformers(staged: Serving, client: httpx.Client) -> None:
    assert_equals_transformers(staged, client)
    assert len(known(staged, at_least=4)) == 4


def test_what_is_reported_of_two_pods_is_true(staged: Serving, client: httpx.Client) -> None:
    pods = newest(staged, "prefill")
    assert [pod["metadata"]["name"] for pod in pods] == ["staged-p-0-0-0", "staged-p-0-0-1"]
    assert staged.complete(client, LONG["prompt"], max_tokens=1).status_code == 200
    state = staged.state(pods[0])
    assert (state["ready"], state["ranks_ready"]) == (True, 2)
    staged.until("the traffic is reported", lambda: sent(staged, pods[0]), 5)
    found = {key: staged.get()["status"]["prefill"][key] for key in ("desired", "ready", "summary")}
    assert found == {"desired": 1, "ready": 1, "summary": "1/1"}
    other = f"http://{pods[1]['status']['podIP']}"
    assert client.get(f"{other}:8000/readyz").status_code == 200
    assert client.get(f"{other}:8000/pds/state").status_code == 404
    for metrics in (f"{other}:8000/metrics", f"{other}:9090/metrics"):
        assert 'pds_rank_ready{rank="1"} 1.0' in client.get(metrics).text
    rows = [line.split() for line in pds_status(staged).splitlines()]
    group, *others = [row for row in rows if row and row[0].startswith("staged-p-0-0-")]
    assert (group[0], group[2:5]) == ("staged-p-0-0-0", ["0", "up", "yes"])
    *pods, start = others
    assert pods == [[f"staged-p-0-0-{rank_pod}", "Running"] for rank_pod in (0, 1)]
    name, *seconds = start  # what the start took, in all and by phase
    assert name == "staged-p-0-0-0" and all(float(each) >= 0 for each in seconds)


def sent(serving: Serving, pod: Object) -> bool:
    """Whether all that the first stage has sent has come to the second; role prefill sends back
    nothing."""
    first, second = serving.state(pod)["traffic"]
    assert (second["outputs_sent"], first["outputs_received"]) == (0, 0)
    return bool(first["hidden_sent"] == second["hidden_received"] >= 16)


def pds_status(serving: Serving) -> str:
    """What `kubectl pds status` prints."""
    here = serving.cluster
    env = {
        "KUBECONFIG": str(here.kubeconfig),
        "PATH": f"{Path(here.program).parent}:/usr/bin:/bin",
    }
    words = ["status", serving.name, "-n", serving.namespace, "--context", here.context]
    done = CliRunner().invoke(kubectl_pds, words, env=env)
    assert done.exit_code == 0, done.output
    return done.output


# ---- losses --------------------------------------------------------------------------------------


def attempt(serving: Serving) -> int:
    return int(leader(serving, "prefill")["metadata"]["labels"]["pdserving.io/attempt"])


def loses(
    serving: Serving,
    client: httpx.Client,
    hurt: Callable[[WorkerProcess, list[Object]], object],
    *,
    stays: bool = False,
) -> tuple[StreamOutcome, float]:
    """What a client gets whose long prompt is held half-way while `hurt` does its worst, and the
    seconds until the group serves again, as the next attempt."""
    pods, before = newest(serving, "prefill"), attempt(serving)
    began: list[float] = []

    def then(worker: WorkerProcess, asked: Future[StreamOutcome]) -> None:
        began.append(time.monotonic())
        hurt(worker, pods)
        if stays:
            asked.result()

    got = amid_prefill(
        serving,
        pods[0],
        lambda: ask(serving.url, LONG, client=client),
        then,
        WorkerProcess(pods[1], 1),
    )
    back = comes_back(serving, "prefill", 0, before + 1, began[0], pods=2)
    print(
        f"ended {got.ended - began[0]:.1f} s after it, {got.error or 'whole'}; back in {back:.1f} s"
    )
    again = ask(serving.url, LONG, client=client)
    assert not again.trouble
    return got, got.ended - began[0]


def test_a_killed_worker_of_the_other_pod_ends_the_group(
    staged: Serving, client: httpx.Client
) -> None:
    got, seconds = loses(staged, client, lambda worker, _: worker.kill())
    assert "HTTP 503" in got.error
    assert seconds < KNOWN_WITHIN
    assert "rank 1 (stage 1)" in why(staged)


def test_a_stopped_worker_is_named_by_the_watchdog(staged: Serving, client: httpx.Client) -> None:
    name = leader(staged, "prefill")["metadata"]["name"]
    with log(staged, name) as lines:
        got, seconds = loses(staged, client, lambda *_: None, stays=True)
        said = lines()
    assert "HTTP 503" in got.error
    assert seconds < STEP_TIMEOUT + KNOWN_WITHIN
    blamed = [line for line in said if "when it fell silent" in line]
    assert any("rank 1 (stage 1)" in line for line in blamed), said
    # Of the two pods that end for it, the Event names the first that the kubelet saw ended:
    # the leader, which names the rank, or the other, which has lost the leader.
    reason = why(staged)
    assert "rank 1 (stage 1)" in reason or "the connection to the scheduler has ended" in reason


@contextmanager
def log(serving: Serving, pod: str) -> Iterator[Callable[[], list[str]]]:
    """The log of a pod's engine, which outlives the pod."""
    words = ("-n", serving.namespace, "logs", "-f", pod, "-c", "engine", "--since=1s")
    with subprocess.Popen(
        serving.cluster.command(*words), stdout=subprocess.PIPE, text=True
    ) as all_:
        try:
            yield lambda: all_.communicate(timeout=30)[0].splitlines()
        finally:
            all_.kill()


def test_a_deleted_pod_drains_its_group(staged: Serving, client: httpx.Client) -> None:
    def delete(worker: WorkerProcess, pods: list[Object]) -> None:
        name = pods[1]["metadata"]["name"]
        words = ("-n", staged.namespace, "delete", "pod", name, "--wait=false")
        staged.cluster.kubectl(*words)

    got, _ = loses(staged, client, delete)
    assert not got.trouble


# ---- ranks of one pod ----------------------------------------------------------------------------


def test_two_dp_ranks_of_two_shards_in_one_pod_answer(
    operator: Cluster, own_namespace: str, client: httpx.Client
) -> None:
    ranks = {
        "replicas": 1,
        "parallelism": {"tp": 2, "dp": 2},
        "ranksPerPod": 4,
        "resources": RESOURCES,
    }
    spec = {"prefill": None, "decode": None, "unified": ranks}
    with served(operator, own_namespace, "ranks", **spec) as serving:
        (pod,) = serving.pods("unified")
        assert serving.state(pod)["ranks_ready"] == 4
        assert_equals_transformers(serving, client)
