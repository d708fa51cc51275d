"""The operator as a process against a real API server, with pods that no node takes.

Nothing of the engine runs here: what is shown is the operator's own part, from an empty namespace
to garbage collection.
"""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from pds_operator.run.api import Api
from running import CHAT, OperatorProcess, condition, eventually, hindered, listed

pytestmark = pytest.mark.cluster
SEEN = 90
"""Seconds: what may pass by itself is reported once it has lasted for half a minute."""


@pytest.fixture(scope="module")
def operator(cluster, namespace, tmp_path_factory) -> Iterator[OperatorProcess]:
    running = OperatorProcess(cluster, namespace, tmp_path_factory.mktemp("operator"))
    eventually(running.metrics)
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="module")
def chat(cluster, namespace, operator) -> Callable[[], dict[str, Any]]:
    cluster.apply(CHAT, namespace=namespace)
    return lambda: cluster.get("pdserving", "chat", namespace)


def test_it_says_what_the_scheduler_says(chat):
    message = hindered(chat)
    assert "node(s) didn't match Pod's node affinity/selector" in message
    assert condition(chat(), "Ready")["reason"] == "NoRouter"
    assert chat()["status"]["prefill"]["summary"] == "0/2"


def test_it_made_everything_once_and_of_groups_of_several_pods_one(cluster, namespace, chat):
    pods = listed(cluster, namespace, "pods")
    assert [name for name in pods if "router" not in name] == [
        "chat-d-0-0-0",
        "chat-d-0-0-1",
        "chat-p-0-0-0",
        "chat-p-1-0-0",
    ]
    assert listed(cluster, namespace, "services") == ["chat", "chat-ranks"]
    assert listed(cluster, namespace, "poddisruptionbudgets") == ["chat-decode", "chat-prefill"]
    assert listed(cluster, namespace, "networkpolicies") == ["chat-engine", "chat-router"]
    secret = cluster.get("secret", "chat-control", namespace)
    assert sorted(secret["data"]) == [
        "client.key",
        "client.pub",
        "hmac.key",
        "server.key",
        "server.pub",
    ]


def test_rounds_that_find_nothing_to_do_write_nothing(operator, chat):
    before, rounds = operator.writes(), operator.metrics()["pds_operator_rounds_total"]
    eventually(lambda: operator.metrics()["pds_operator_rounds_total"] >= rounds + 4)
    assert operator.writes() == before


def test_neither_finalizer_nor_annotation_on_the_object(chat):
    meta = chat()["metadata"]
    assert "finalizers" not in meta
    assert set(meta.get("annotations", {})) <= {"kubectl.kubernetes.io/last-applied-configuration"}


def test_it_is_small(operator, chat):
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    [resident] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert int(resident) < 150_000
    maps = Path(f"/proc/{operator.process.pid}/maps").read_text()
    assert "torch" not in maps


def test_a_killed_operator_goes_on_where_it_was(cluster, namespace, operator, chat):
    pods = listed(cluster, namespace, "pods")
    operator.stop(signal.SIGKILL)
    operator.start()
    # The lease of the killed one runs out first; then whole rounds without a write.
    eventually(lambda: operator.metrics()["pds_operator_rounds_total"] >= 3)
    assert listed(cluster, namespace, "pods") == pods
    assert operator.writes() == 0


async def test_an_odd_revision_takes_annotations_and_an_odd_object_is_applied(cluster, namespace):
    odd = {"smile": "\U0001f600", "<&>": "\x7f\u2028\ufeff", "b": [1, 1.5], "a": {}}
    meta = {"name": "odd", "namespace": namespace}
    revision = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": meta,
        "revision": 1,
        "data": odd,
    }
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {"text": "".join(odd)},
    }
    configuration = Configuration()
    await load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    async with Api(configuration) as api:
        made = await api.create(revision)
        assert made["data"] == odd
        patch = {"metadata": {"uid": made["metadata"]["uid"], "annotations": {"a": "b"}}}
        noted = await api.merge("ControllerRevision", namespace, "odd", patch)
        assert (noted["data"], noted["metadata"]["annotations"]) == (odd, {"a": "b"})
        assert (await api.apply(settings))["data"] == settings["data"]
        for kind, obj in ("ControllerRevision", made), ("ConfigMap", settings):
            live = await api.get(kind, namespace, obj["metadata"]["name"])
            await api.delete(kind, namespace, "odd", live["metadata"]["uid"])


def test_a_foreign_object_is_named_and_left_untouched(cluster, namespace, operator, chat):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "other"},
        "spec": {"ports": [{"port": 1}]},
    }
    cluster.apply(service, namespace=namespace)
    before = cluster.get("service", "other", namespace)
    cluster.apply({**CHAT, "metadata": {"name": "other"}}, namespace=namespace)

    def degraded() -> dict[str, Any] | None:
        found = condition(cluster.get("pdserving", "other", namespace), "Degraded")
        return found if "Service other exists and is not owned" in found["message"] else None

    eventually(degraded)
    assert cluster.get("service", "other", namespace) == before
    cluster.kubectl("-n", namespace, "delete", "pdserving", "other")


def test_a_full_quota_is_a_condition(cluster, namespace, operator):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full"},
        "spec": {"hard": {"count/pods": "4"}},
    }
    cluster.apply(quota, namespace=namespace)
    eventually(
        lambda: cluster.get("resourcequota", "full", namespace).get("status", {}).get("used")
    )
    cluster.apply({**CHAT, "metadata": {"name": "second"}}, namespace=namespace)
    eventually(
        lambda: (
            condition(cluster.get("pdserving", "second", namespace), "Degraded")["reason"]
            == "QuotaExceeded"
        ),
        SEEN,
    )
    cluster.kubectl("-n", namespace, "delete", "resourcequota", "full")
    cluster.kubectl("-n", namespace, "delete", "pdserving", "second")


@pytest.mark.parametrize("wrong", [{"dnsPolicy": "Sometimes"}, {"nodeSelektor": {"a": "b"}}])
def test_a_refused_template_is_a_condition(cluster, namespace, operator, wrong):
    odd = json.loads(json.dumps(CHAT))
    odd["metadata"]["name"] = "odd"
    odd["spec"]["decode"]["podTemplate"] = {"spec": wrong}
    cluster.apply(odd, namespace=namespace)

    def invalid() -> bool:
        found = cluster.get("pdserving", "odd", namespace)
        conditions = [condition(found, kind) for kind in ("Degraded", "Progressing")]
        [field] = wrong
        return all(one["reason"] == "Invalid" and field in one["message"] for one in conditions)

    eventually(invalid)
    text = cluster.kubectl(
        "-n", namespace, "get", "pods", "-l", "pdserving.io/name=odd", "-o", "name"
    )
    assert "odd-d" not in text
    cluster.kubectl("-n", namespace, "delete", "pdserving", "odd")


def test_deletion_leaves_nothing_behind(cluster, namespace, operator, chat):
    chat()
    cluster.kubectl("-n", namespace, "delete", "pdserving", "chat")
    kinds = (
        "pods,services,deployments,configmaps,secrets,serviceaccounts,rolebindings,"
        "controllerrevisions,poddisruptionbudgets,networkpolicies"
    )
    eventually(lambda: not listed(cluster, namespace, kinds))


def test_it_ends_cleanly_and_gives_the_lease_back(cluster, namespace, operator):
    assert operator.stop() == 0
    lease = cluster.get("lease", "pds-operator", namespace)
    assert not lease["spec"].get("holderIdentity")
    assert "Traceback" not in operator.log.read_text()
