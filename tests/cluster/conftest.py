"""Fixtures for tests on a real Kubernetes.

A test marked `cluster` is skipped, saying how to get one, where there is none; with
PDS_REQUIRE_CLUSTER=1 (as in CI) it fails instead. PDS_CONTEXT=name uses a cluster of your own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# serving.py is a helper of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from pds_cluster import testing
from pds_cluster.testing import pytest_runtest_makereport as pytest_runtest_makereport


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


@pytest.fixture(scope="session")
def operator(cluster: testing.Cluster) -> testing.Cluster:
    """The cluster with this tree's chart installed, as `make demo` installs it."""
    if not cluster.is_local:
        pytest.skip("these tests run the working tree, which only the local cluster mounts")
    testing.install(cluster)
    return cluster
