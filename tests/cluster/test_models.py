"""Models whose layers are not Llama's, on a cluster: a mixture of experts whose decode group has
two dp ranks with whole experts each, and latent attention from two ranks to one."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from made_models import EXPERTS, LATENT, made, questions
from pds_cluster.testing import Cluster
from reference import assert_equals_transformers
from serving import Object, Serving, served
from streams import REST, crowd
from workers import WorkerProcess, comes_back, label, newest, why

pytestmark = pytest.mark.cluster

CLIENTS = 16
PAUSE = 2.0
"""Seconds that a client waits who was refused: all of them, until the group is back."""
CPU: Object = {"replicas": 1, "resources": {"requests": {"cpu": "100m"}}}


def model(folder: Path) -> Object:
    return {"name": "tiny", "source": {"path": str(folder)}, "dtype": "float32"}


@pytest.fixture(scope="module")
def expert_model() -> Path:
    return made("Qwen3Moe", **EXPERTS)


@pytest.fixture(scope="module")
def latent_model() -> Path:
    return made("DeepseekV3", **LATENT)


@pytest.fixture(scope="module")
def experts(operator: Cluster, namespace: str, expert_model: Path) -> Iterator[Serving]:
    """A pair; its decode group has a pod for each of two dp ranks, of four experts each."""
    decode = {**CPU, "parallelism": {"dp": 2, "ep": True}}
    spec = {"model": model(expert_model), "decode": decode}
    with served(operator, namespace, "experts", **spec) as serving:
        yield serving


@pytest.fixture(scope="module")
def latent(operator: Cluster, namespace: str, latent_model: Path) -> Iterator[Serving]:
    """A pair: two tensor-parallel ranks hand over to one."""
    prefill = {**CPU, "parallelism": {"tp": 2}}
    spec = {"model": model(latent_model), "prefill": prefill}
    with served(operator, namespace, "latent", **spec) as serving:
        yield serving


def test_experts_answer_as_transformers_does(
    experts: Serving, client: httpx.Client, expert_model: Path
) -> None:
    assert_equals_transformers(experts, client, expert_model)


def test_a_killed_rank_of_experts_breaks_no_stream_and_changes_no_answer(
    experts: Serving, expert_model: Path
) -> None:
    asked = questions(experts, expert_model, 6)
    pods = newest(experts, "decode")
    with crowd(experts.url, asked, clients=CLIENTS, pause=PAUSE, rest=REST / 5) as clients:
        clients.goes_on()
        killed = WorkerProcess(pods[1], 1).kill()
        back = comes_back(experts, "decode", 0, label(pods[0], "attempt") + 1, killed, pods=2)
        clients.goes_on()
    told = [each for each in clients.outcomes if each.error.startswith("HTTP 503")]
    assert [each.trouble for each in clients.outcomes if each.trouble and each not in told] == []
    assert all(each.began < killed + back for each in told)
    assert "rank 1 (stage 0, dp rank 1)" in why(experts)
    print(f"{len(clients.outcomes)} requests, {len(told)} refused; back in {back:.1f} s")


def test_latent_pages_come_from_two_ranks_to_one(
    latent: Serving, client: httpx.Client, latent_model: Path
) -> None:
    assert_equals_transformers(latent, client, latent_model)
    (prefill,), (decode,) = (latent.states(role) for role in ("prefill", "decode"))
    assert prefill["kv_fingerprint"] == decode["kv_fingerprint"]
    assert (prefill["ranks_ready"], decode["ranks_ready"]) == (2, 1)
