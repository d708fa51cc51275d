"""What cannot work is refused at once, by its name and with the cure, and never crash-loops."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pds_cluster.errors import ClusterError
from pds_cluster.testing import Cluster
from serving import MODEL, Object, Serving, manifest

pytestmark = pytest.mark.cluster

REPORTED_WITHIN = 120
"""Seconds on a busy machine; a container needs a few to start and say what is wrong."""
CONFIG = "bare-model"


@dataclass(frozen=True)
class Impossible:
    """A spec that admission cannot refuse, as it does not see the model, and what is said of it."""

    name: str
    spec: dict[str, Any]
    field: str
    cure: str


def unified(**role: Any) -> dict[str, Any]:
    """A single small group and no router: nothing here ever gets so far as to be routed to."""
    small = {"replicas": 1, "resources": {"requests": {"cpu": "50m"}}, **role}
    return {"prefill": None, "decode": None, "unified": small, "router": {"replicas": 0}}


def from_path(path: str) -> Object:
    return {"model": {"name": "tiny", "source": {"path": path}}}


BARE = {
    "spec": {
        "volumes": [{"name": "bare", "configMap": {"name": CONFIG}}],
        "containers": [
            {"name": "engine", "volumeMounts": [{"name": "bare", "mountPath": "/bare"}]}
        ],
    }
}
CASES = [
    Impossible(
        "deep",
        unified(parallelism={"pp": 5}, ranksPerPod=5),
        "parallelism.pp 5 is above the model's 4 layers",
        "choose pp ≤ 4",
    ),
    Impossible(
        "wide",
        unified(parallelism={"tp": 3}, ranksPerPod=3),
        "parallelism.tp 3 does not divide the model's 4 attention heads",
        "choose a parallelism.tp that divides",
    ),
    Impossible(
        "uneven",
        unified(parallelism={"tp": 2, "dp": 5}, ranksPerPod=10),
        "parallelism.tp 2 times parallelism.dp 5 does not divide the model's 384 MLP columns",
        "choose a parallelism.tp and a parallelism.dp whose product divides them",
    ),
    Impossible(
        "lost",
        {**unified(), **from_path("/models/tinny")},
        "model.path: cannot read /models/tinny/config.json",
        "as the container sees it",
    ),
    Impossible(
        "bare",
        {**unified(podTemplate=BARE), **from_path("/bare")},
        "model.path: missing /bare/model.safetensors",
        "other formats must be converted",
    ),
    Impossible(
        "long",
        {**unified(), "engine": {"maxModelLen": 100000}},
        "max_model_len 100000 is above the model's 4096 positions",
        "choose max_model_len ≤ 4096",
    ),
]


@pytest.fixture(scope="module")
def impossible(operator: Cluster, namespace: str) -> dict[str, Serving]:
    """All of them at once: what one waits for, all do."""
    bare = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG},
        "data": {"config.json": (MODEL / "config.json").read_text()},
    }
    operator.apply(bare, namespace=namespace)
    servings = {c.name: Serving(operator, namespace, manifest(c.name, **c.spec)) for c in CASES}
    for serving in servings.values():
        serving.apply()
    return servings


def degraded(serving: Serving, text: str) -> bool:
    condition = serving.conditions().get("Degraded", {})
    return condition.get("status") == "True" and text in condition["message"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_condition_names_the_field_and_the_cure(
    impossible: dict[str, Serving], case: Impossible
) -> None:
    serving = impossible[case.name]
    serving.until(case.field, lambda: degraded(serving, case.field), REPORTED_WITHIN)
    condition = serving.conditions()["Degraded"]
    assert condition["reason"] == "ConfigurationError"
    assert case.cure in condition["message"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_its_pod_is_not_started_again(impossible: dict[str, Serving], case: Impossible) -> None:
    """A first failure is otherwise retried in the very next round, and this test makes rounds."""
    serving = impossible[case.name]
    serving.until(case.field, lambda: degraded(serving, case.field), REPORTED_WITHIN)
    (before,) = serving.pods("unified")
    (ended,) = (s["state"]["terminated"] for s in before["status"]["containerStatuses"])
    assert ended["exitCode"] == 78
    for surge in (2, 3):  # touches no pod
        serving.apply(rollout={"drainSeconds": 30, "maxSurge": surge})
        generation = serving.get()["metadata"]["generation"]
        serving.until("observed", lambda: observed(serving) == generation, 30)  # noqa: B023
    (after,) = serving.pods("unified")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["metadata"]["labels"]["pdserving.io/attempt"] == "0"
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


def observed(serving: Serving) -> int:
    return int(serving.get()["status"]["observedGeneration"])


def test_a_changed_spec_is_tried_at_once(impossible: dict[str, Serving]) -> None:
    serving = impossible["lost"]
    serving.until("reported", lambda: degraded(serving, "/models/tinny/"), REPORTED_WITHIN)
    serving.apply(**from_path("/models/tinier"))
    serving.until("reported anew", lambda: degraded(serving, "/models/tinier/"), REPORTED_WITHIN)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"engine": {"chunkSise": 5}}, 'unknown field "chunkSise"'),
        ({"prefil": {}}, 'unknown field "prefil"'),
        (
            {
                "prefill": {"engine": {"kvDtype": "float16"}},
                "decode": {"engine": {"kvDtype": "bfloat16"}},
            },
            "one kvDtype: pages of different types cannot be handed over",
        ),
        (
            {"prefill": {"engine": {"pageSize": 32}}, "decode": {}},
            "one pageSize: pages of different sizes cannot be handed over",
        ),
        ({"unified": {}}, "either unified alone, or prefill and decode together"),
        ({"prefill": {"replicas": -1}}, "spec.prefill.replicas"),
        ({"model": {"name": "tiny", "source": {}}}, "exactly one of path, pvc and image"),
    ],
)
def test_kubectl_apply_is_refused(
    operator: Cluster, namespace: str, spec: dict[str, Any], named: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        operator.apply(manifest("refused", **spec), namespace=namespace)
    assert named in str(refused.value)
    found = operator.kubectl("-n", namespace, "get", "pds", "-o", "json")
    assert "refused" not in {i["metadata"]["name"] for i in json.loads(found)["items"]}
