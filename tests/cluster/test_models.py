"""A model of latent attention, from two ranks to one. test_data_parallel.py has one of experts."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from made_models import LATENT, made
from pds_cluster.testing import Cluster
from reference import assert_equals_transformers
from serving import Object, Serving, served

pytestmark = pytest.mark.cluster

CPU: Object = {"replicas": 1, "resources": {"requests": {"cpu": "100m"}}}


def model(folder: Path) -> Object:
    return {"name": "tiny", "source": {"path": str(folder)}, "dtype": "float32"}


@pytest.fixture(scope="module")
def latent_model() -> Path:
    return made("DeepseekV3", **LATENT)


@pytest.fixture(scope="module")
def latent(operator: Cluster, namespace: str, latent_model: Path) -> Iterator[Serving]:
    """A pair: two tensor-parallel ranks hand over to one."""
    prefill = {**CPU, "parallelism": {"tp": 2}}
    spec = {"model": model(latent_model), "prefill": prefill}
    with served(operator, namespace, "latent", **spec) as serving:
        yield serving


def test_latent_pages_come_from_two_ranks_to_one(
    latent: Serving, client: httpx.Client, latent_model: Path
) -> None:
    assert_equals_transformers(latent, client, latent_model)
    (prefill,), (decode,) = (latent.states(role) for role in ("prefill", "decode"))
    assert prefill["kv_fingerprint"] == decode["kv_fingerprint"]
    assert (prefill["ranks_ready"], decode["ranks_ready"]) == (2, 1)
