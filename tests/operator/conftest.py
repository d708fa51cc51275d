"""Fixtures of the operator's tests. Those marked `cluster` need a real Kubernetes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# worlds.py, bench.py, plugin.py and their like are helpers of these tests alone: tests have no
# packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

import plugin
from bench import Bench
from pds_cluster import testing
from pds_cluster.errors import ClusterError
from pds_cluster.testing import pytest_runtest_makereport as pytest_runtest_makereport
from running import eventually
from worlds import World, settled

ROOT = Path(__file__).parents[2]
OPERATORS = "app.kubernetes.io/part-of=pdserving,app.kubernetes.io/component=operator"


@pytest.fixture(scope="session")
def cluster() -> testing.Cluster:
    """The cluster that is up; without one the test is skipped, or fails in CI."""
    return testing.required()


@pytest.fixture(scope="session")
def definition(cluster: testing.Cluster) -> Iterator[None]:
    """The tree's definitions: the chart's, where its rules are the same; else ours for a while."""
    path = str(ROOT / "crds/pdservings.yaml")
    wanted = next(yaml.safe_load_all(Path(path).read_text()))
    try:
        text = cluster.kubectl("get", "crd", "pdservings.pdserving.io", "-o", "json")
        found = _rules(json.loads(text))
    except ClusterError:
        found = None  # there is none yet
    if found != _rules(wanted):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", path)
        cluster.wait("crd/pdservings.pdserving.io", "Established", "default")
    yield
    if found is None:
        # The chart refuses a definition that it did not make.
        cluster.kubectl("delete", "--ignore-not-found", "-f", path)


@pytest.fixture(scope="module")
def alone(cluster: testing.Cluster) -> Iterator[None]:
    """No other operator: one that serves all namespaces would answer in ours too."""
    text = cluster.kubectl("get", "deployments", "-A", "-l", OPERATORS, "-o", "json")
    others = [
        (item["metadata"]["namespace"], item["metadata"]["name"], item["spec"]["replicas"])
        for item in json.loads(text)["items"]
        if item["spec"]["replicas"]
    ]
    if others and not cluster.is_local:
        pytest.skip(f"the operator {others[0][:2]} of your own cluster would answer too")
    for space, name, _ in others:
        cluster.kubectl("-n", space, "scale", "deployment", name, "--replicas=0")
    eventually(lambda: not cluster.kubectl("get", "pods", "-A", "-l", OPERATORS, "-o", "name"))
    yield
    for space, name, replicas in others:
        cluster.kubectl("-n", space, "scale", "deployment", name, f"--replicas={replicas}")


def _rules(node: Any) -> list[str]:
    if isinstance(node, dict):
        found = [item["rule"] for item in node.get("x-kubernetes-validations", [])]
        return found + [rule for value in node.values() for rule in _rules(value)]
    if isinstance(node, list):
        return [rule for value in node for rule in _rules(value)]
    return []


@pytest.fixture(scope="module")
def namespace(cluster: testing.Cluster, definition: None, alone: None) -> Iterator[str]:
    """A fresh namespace for the tests of one module, in which no other operator writes."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def world() -> World:
    """One PDServing that stands whole, and the planner alone."""
    return settled()


@pytest.fixture
async def bench() -> Bench:
    """One PDServing that stands whole, and the reconciler."""
    bench = Bench()
    await bench.settle()
    return bench


@pytest.fixture
def kubectl(monkeypatch: pytest.MonkeyPatch) -> plugin.Kubectl:
    """A kubectl in place of the real one, for `kubectl pds`."""
    return plugin.answering(monkeypatch)
