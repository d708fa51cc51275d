"""Fixtures for tests on a real Kubernetes.

A test marked `cluster` is skipped, saying how to get one, where there is none; with
PDS_REQUIRE_CLUSTER=1 (as in CI) it fails instead. PDS_CONTEXT=name uses a cluster of your own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

# serving.py is a helper of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from pds_cluster import testing
from pds_cluster.testing import pytest_runtest_makereport as pytest_runtest_makereport
from serving import COLD, Object, Serving, manifest
from watching import DEBUG

GROUP: Object = {"replicas": 1, "resources": {"requests": {"cpu": "100m"}}}
STAGED: Object = {**GROUP, "parallelism": {"pp": 2}}
COMPILED: Object = {
    "prefill": GROUP,
    "decode": GROUP,
    "router": {"replicas": 1, "podTemplate": DEBUG, "resources": {"requests": {"cpu": "50m"}}},
    "compileCache": {
        "volume": {"claim": {"size": "1Gi"}},
        "warmup": {"enabled": True, "workers": 2, "timeoutSeconds": COLD},
    },
    "rollout": {"maxSurge": 1, "maxUnavailable": 0, "drainSeconds": 60},
}
CACHE: Object = COMPILED["compileCache"]
FIRST: Object = {
    "prefill": STAGED,
    "decode": STAGED,
    "compileCache": {**CACHE, "warmup": {**CACHE["warmup"], "targets": ["sm_90"]}},
}
"""How it differs at first."""


@pytest.fixture(scope="session")
def cluster() -> testing.Cluster:
    """The cluster that is up: see pds_cluster.testing.Cluster."""
    return testing.required()


@pytest.fixture(scope="module")
def namespace(cluster: testing.Cluster) -> Iterator[str]:
    """A fresh namespace for the tests of one module, deleted with all that is in it."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def own_namespace(cluster: testing.Cluster) -> Iterator[str]:
    """A fresh namespace for one test."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """One connection pool for the requests of one test."""
    with httpx.Client() as made:
        yield made


@pytest.fixture(scope="session")
def operator(cluster: testing.Cluster) -> testing.Cluster:
    """The cluster with this tree's chart installed, as `make demo` installs it."""
    if not cluster.is_local:
        pytest.skip("these tests run the working tree, which only the local cluster mounts")
    testing.install(cluster)
    return cluster


@pytest.fixture(scope="session")
def chat(operator: testing.Cluster) -> Iterator[Serving]:
    """One PDServing of a pair, eager, that all files of a process share.

    Each asks for the replicas it needs by `sized`, and leaves no request behind.
    """
    with operator.namespace() as name:
        serving = Serving(operator, name, manifest("chat"))
        serving.apply()
        serving.settled()
        yield serving


@pytest.fixture(scope="session")
def cold(operator: testing.Cluster) -> Iterator[Serving]:
    """One PDServing of compiled kernels, which its first pods compile: a prefill and a decode
    group of two stages each, at once, on an empty volume. A Job compiles for sm_90 beside them.
    """
    with operator.namespace() as name:
        serving = Serving(operator, name, manifest("compiled", **{**COMPILED, **FIRST}))
        serving.apply()
        serving.settled(COLD)
        yield serving


@pytest.fixture(scope="session")
def compiled(cold: Serving) -> Serving:
    """The same as a pair of a pod each: its files share one warm cache."""
    cold.apply(**COMPILED)
    cold.settled(COLD)
    return cold
