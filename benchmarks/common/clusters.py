"""The cluster that a benchmark runs on, and what may be in its way there."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pds_cluster import build, testing
from pds_cluster.errors import ClusterError
from pds_cluster.settings import load
from pds_cluster.shell import wait_for

from common import doing, say

KWOK_NODE = {"type": "kwok"}
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "110"}
OPERATORS = "app.kubernetes.io/part-of=pdserving,app.kubernetes.io/component=operator"


def find() -> testing.Cluster:
    """The cluster that is up; without one the run ends and says how to get one."""
    say("looking for the cluster")
    try:
        return testing.find(load())
    except ClusterError as error:
        raise SystemExit(f"error: {error}") from None


def alone(cluster: testing.Cluster) -> None:
    """End the run, and say why, where an operator is that would look after our objects too."""
    words = ("get", "deployments", "--all-namespaces", "-l", OPERATORS, "-o", "json")
    for found in json.loads(cluster.kubectl(*words))["items"]:
        name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
        if found["spec"]["replicas"]:
            stop = f"-n {namespace} scale deployment {name} --replicas=0"
            raise SystemExit(
                f"error: an operator runs here, deployment {name} of namespace {namespace} (of "
                "`make demo`?): it would look after the PDServings of this run beside ours. Stop "
                f"it while this runs: {cluster.program} --kubeconfig={cluster.kubeconfig} {stop}"
            )


@contextmanager
def kwok(cluster: testing.Cluster, nodes: int, folder: Path) -> Iterator[int]:
    """So many nodes, kept by KWOK; yields its pid."""
    with doing("building KWOK, where it is not built yet", 600):
        program = build.kwok(load())
    items = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"kwok-{number}",
                "labels": KWOK_NODE,
                "annotations": {"kwok.x-k8s.io/node": "fake"},
            },
            "status": {"capacity": CAPACITY, "allocatable": CAPACITY},
        }
        for number in range(nodes)
    ]
    cluster.apply(*items, namespace="default")
    words = [
        *(str(program), f"--kubeconfig={cluster.kubeconfig}", "--manage-all-nodes=false"),
        "--manage-nodes-with-label-selector=type=kwok",
        *("--cidr=127.100.0.1/16", "--node-ip=127.0.0.1", "--node-lease-duration-seconds=40"),
    ]
    with (folder / "kwok.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        selector = ("-l", "type=kwok")
        cluster.kubectl("wait", "node", *selector, "--for=condition=Ready", "--timeout=60s")
        tainted = ("get", "node", *selector, "-o", "jsonpath={.items[*].spec.taints}")
        wait_for("the nodes' taints to go", lambda: not cluster.kubectl(*tainted), 60)
        yield process.pid
    finally:
        cluster.kubectl("delete", "node", "-l", "type=kwok", "--wait=false")
        process.terminate()
        process.wait(10)
