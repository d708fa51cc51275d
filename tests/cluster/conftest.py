"""Fixtures for tests on a real Kubernetes.

A test marked `cluster` is skipped, saying how to get one, where there is none; with
PDS_REQUIRE_CLUSTER=1 (as in CI) it fails instead. PDS_CONTEXT=name uses a cluster of your own.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from pds_cluster import settings as cluster_settings
from pds_cluster import testing
from pds_cluster.errors import ClusterError


@pytest.fixture(scope="session")
def cluster() -> testing.Cluster:
    """The cluster that is up: see pds_cluster.testing.Cluster."""
    try:
        return testing.find(cluster_settings.load())
    except ClusterError as error:
        message = f"needs a cluster (`make cluster-up`, or PDS_CONTEXT=name): {error}"
        if os.environ.get("PDS_REQUIRE_CLUSTER"):
            pytest.fail(message)
        pytest.skip(message)


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
