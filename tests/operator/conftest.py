"""Fixtures of the operator's tests. Those marked `cluster` need a real Kubernetes."""

import os
import sys
from pathlib import Path

import pytest

# worlds.py and fake_api.py are helpers of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

from pds_cluster import settings as cluster_settings
from pds_cluster import testing
from pds_cluster.errors import ClusterError


@pytest.fixture(scope="session")
def cluster() -> testing.Cluster:
    """The cluster that is up; without one the test is skipped, or fails in CI."""
    try:
        return testing.find(cluster_settings.load())
    except ClusterError as error:
        message = f"needs a cluster (`make cluster-up`, or PDS_CONTEXT=name): {error}"
        if os.environ.get("PDS_REQUIRE_CLUSTER"):
            pytest.fail(message)
        pytest.skip(message)
