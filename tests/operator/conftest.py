"""Fixtures of the operator's tests. Those marked `cluster` need a real Kubernetes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# worlds.py and fake_api.py are helpers of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from pds_cluster import testing
from pds_cluster.errors import ClusterError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> testing.Cluster:
    """The cluster that is up; without one the test is skipped, or fails in CI."""
    return testing.required()


@pytest.fixture(scope="session")
def definition(cluster: testing.Cluster) -> None:
    """The tree's definition: the chart's, where its rules are the same."""
    wanted = next(yaml.safe_load_all((ROOT / "crds/pdservings.yaml").read_text()))
    try:
        text = cluster.kubectl("get", "crd", "pdservings.pdserving.io", "-o", "json")
        if _rules(json.loads(text)) == _rules(wanted):
            return
    except ClusterError:
        pass  # there is none yet
    path = str(ROOT / "crds/pdservings.yaml")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", path)
    cluster.wait("crd/pdservings.pdserving.io", "Established", "default")


def _rules(node: Any) -> list[str]:
    if isinstance(node, dict):
        found = [item["rule"] for item in node.get("x-kubernetes-validations", [])]
        return found + [rule for value in node.values() for rule in _rules(value)]
    if isinstance(node, list):
        return [rule for value in node for rule in _rules(value)]
    return []
