"""Two replicas of the operator against a real API server: one writes, the other takes over.

Pods find no node here, as in test_operator_process.py: what is shown is who writes, and when.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from pds_cluster import processes, testing
from pds_operator import errors
from pds_operator.run.api import Api
from running import CHAT, CHAT_PODS, OperatorProcess, condition, eventually, hindered, listed

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TERM = 5.0
"""Of the Lease, in seconds: Operator's settings."""
TAKEN_OVER = 4 * TERM
"""From the end of the leader: the term, a fifth of it to look again, and a round; and as much again
where the machine is busy."""


@pytest.fixture(scope="module")
def replicas(cluster, namespace, tmp_path_factory) -> Iterator[list[OperatorProcess]]:
    """Both started at once, on a Lease that nobody has made."""
    both = [
        OperatorProcess(cluster, namespace, tmp_path_factory.mktemp(name)) for name in ("a", "b")
    ]
    for each in both:
        eventually(each.metrics)
    yield both
    for each in both:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGCONT)
            each.stop()


@pytest.fixture(scope="module")
def chat(cluster, namespace, replicas) -> Callable[[], dict[str, Any]]:
    cluster.apply(CHAT, namespace=namespace)
    eventually(lambda: len(engines(cluster, namespace)) == CHAT_PODS)
    return lambda: cluster.get("pdserving", "chat", namespace)


def engines(cluster: testing.Cluster, namespace: str) -> list[str]:
    """The engine pods by name and UID: none is made twice, none is made again."""
    text = cluster.kubectl(
        *("-n", namespace, "get", "pods", "-o", "json"),
        *("-l", "pdserving.io/name=chat,pdserving.io/role in (prefill,decode)"),
    )
    found = [item["metadata"] for item in json.loads(text)["items"]]
    return sorted(f"{meta['name']} {meta['uid']}" for meta in found)


def led(replicas: list[OperatorProcess]) -> tuple[OperatorProcess, OperatorProcess]:
    """(who leads, who stands by)."""

    def split() -> tuple[OperatorProcess, OperatorProcess] | None:
        leads = [each for each in replicas if each.metrics()["pds_operator_leads"]]
        rest = [each for each in replicas if each not in leads]
        return (leads[0], rest[0]) if len(leads) == 1 else None

    found: tuple[OperatorProcess, OperatorProcess] = eventually(split, 3 * TERM)
    return found


def asked_for(cluster: testing.Cluster, namespace: str, surge: int) -> None:
    """An edit that makes no pod, and of which only a status shows that it was seen."""
    cluster.apply(
        {**CHAT, "spec": {**CHAT["spec"], "rollout": {"maxSurge": surge}}}, namespace=namespace
    )


def seen(pds: dict[str, Any]) -> bool:
    return bool(pds["status"].get("observedGeneration") == pds["metadata"]["generation"])


@contextmanager
def without_api_server(cluster: testing.Cluster) -> Iterator[None]:
    """The local cluster's API server crashes, and starts anew at the end of the block."""
    if not cluster.is_local:
        pytest.skip("the API server of your own cluster is not ours to restart")
    processes.stop(cluster.settings, "kube-apiserver", grace=0)
    try:
        yield
    finally:
        words = (sys.executable, "-m", "pds_cluster", "up")
        subprocess.run(words, cwd=ROOT / "cluster", check=True, capture_output=True)


def test_one_of_two_writes_and_the_other_only_watches(cluster, namespace, replicas, chat):
    leader, other = led(replicas)
    assert leader.writes() > 0
    assert other.writes() == 0
    assert leader.metrics()["pds_operator_rounds_total"] > 0
    assert other.metrics()["pds_operator_rounds_total"] == 0
    lease = cluster.get("lease", "pds-operator", namespace)["spec"]
    assert lease["leaseTransitions"] == 0
    assert lease["leaseDurationSeconds"] == TERM


def test_the_other_takes_over_from_a_killed_leader_within_the_term(
    cluster, namespace, replicas, chat
):
    leader, other = led(replicas)
    pods, before = engines(cluster, namespace), chat()["status"]
    leader.stop(signal.SIGKILL)
    killed = time.monotonic()
    asked_for(cluster, namespace, surge=2)
    eventually(lambda: seen(chat()), TAKEN_OVER)
    seconds = time.monotonic() - killed
    assert other.metrics()["pds_operator_leads"] == 1
    assert engines(cluster, namespace) == pods
    assert chat()["status"]["targetRevision"] == before["targetRevision"]
    assert cluster.get("lease", "pds-operator", namespace)["spec"]["leaseTransitions"] == 1
    print(f"leader killed: the other had seen the next edit {seconds:.1f} s later")
    leader.start()
    eventually(leader.metrics)
    assert led(replicas) == (other, leader)
    assert leader.writes() == 0


def test_a_leader_that_hung_writes_nothing_when_it_goes_on(cluster, namespace, replicas, chat):
    """It was stopped for longer than its term: what it knew then is not what is so now."""
    leader, other = led(replicas)
    before, pods = leader.writes(), engines(cluster, namespace)
    leader.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    asked_for(cluster, namespace, surge=3)
    eventually(lambda: seen(chat()), TAKEN_OVER)
    taken = time.monotonic() - stopped
    assert other.metrics()["pds_operator_leads"] == 1
    asked_for(cluster, namespace, surge=4)
    leader.process.send_signal(signal.SIGCONT)
    eventually(lambda: seen(chat()), TAKEN_OVER)
    assert led(replicas) == (other, leader)
    eventually(lambda: leader.metrics()["pds_operator_oldest_wait_seconds"] == 0)
    assert leader.writes() == before
    assert engines(cluster, namespace) == pods
    print(f"leader stopped: the other had seen the next edit {taken:.1f} s later")


def test_an_api_server_that_restarts_changes_nothing(cluster, namespace, replicas, chat):
    """Nobody leads meanwhile; watches that broke off list anew."""
    hindered(chat)
    pods, made = engines(cluster, namespace), listed(cluster, namespace, "services,configmaps")
    with without_api_server(cluster):
        gone = time.monotonic()
        eventually(lambda: not any(r.metrics()["pds_operator_leads"] for r in replicas), 2 * TERM)
        lost = time.monotonic() - gone
    back = time.monotonic()
    leader, other = led(replicas)
    asked_for(cluster, namespace, surge=1)
    eventually(lambda: seen(chat()))
    seconds = time.monotonic() - back
    before = leader.writes(), other.writes()
    rounds = leader.metrics()["pds_operator_rounds_total"]
    eventually(lambda: leader.metrics()["pds_operator_rounds_total"] >= rounds + 2)
    assert (leader.writes(), other.writes()) == before
    assert engines(cluster, namespace) == pods
    assert listed(cluster, namespace, "services,configmaps") == made
    for each in replicas:
        assert each.process.poll() is None
        assert "Traceback" not in each.log.read_text()
    print(f"API server gone: none leads {lost:.1f} s later; an edit seen {seconds:.1f} s after it")


async def test_the_server_says_so_when_a_watch_asks_for_what_is_too_old(cluster, namespace, chat):
    """410, in the stream or before it: `follow` lists anew (test_cluster.py)."""
    configuration = Configuration()
    await load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    async with Api(configuration) as api:
        with pytest.raises(errors.Gone):
            await anext(api.watch("Pod", namespace, "1"))


def test_the_lease_that_is_given_back_is_taken_at_once(cluster, namespace, replicas, chat):
    leader, other = led(replicas)
    assert leader.stop() == 0
    ended = time.monotonic()
    eventually(lambda: other.metrics()["pds_operator_leads"] == 1, TERM)
    print(f"leader ended by SIGTERM: the other leads {time.monotonic() - ended:.1f} s later")
    assert condition(chat(), "Degraded")["reason"] == "Unschedulable"
