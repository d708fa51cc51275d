"""Warm-up on the shared volume: the first pod of a revision compiles, the second finds it all.

The seconds from creation to Ready of both are printed side by side (`pytest -rP`). They are not
asserted: what is, is that the second compiled nothing.
"""

import json
from datetime import datetime

import httpx
import pytest
from pds_cluster.testing import Cluster
from serving import Object, Serving, manifest

pytestmark = pytest.mark.cluster

COLD = 600
"""Seconds: two graphs by g++, on two cores that other work shares."""
RESOURCES = {"requests": {"cpu": "400m"}}
"""More than other tests ask for: the shares of CPU follow from it while the machine is busy."""
SPEC = {
    "prefill": None,
    "decode": None,
    "unified": {"replicas": 1, "resources": RESOURCES},
    "compileCache": {
        "volume": {"claim": {"size": "1Gi"}},
        "warmup": {"enabled": True, "workers": 2, "timeoutSeconds": COLD},
    },
}


@pytest.fixture(scope="module")
def warmed(operator: Cluster, namespace: str) -> Serving:
    serving = Serving(operator, namespace, manifest("warm", **SPEC))
    serving.apply()
    serving.settled(COLD)
    return serving


def proof(pod: Object) -> Object:
    """What the warm-up of `pod` wrote to its termination message."""
    (warmup,) = pod["status"]["initContainerStatuses"]
    found: Object = json.loads(warmup["state"]["terminated"]["message"])
    return found


def start_seconds(pod: Object) -> float:
    """From creation to Ready."""
    ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    begun, ended = pod["metadata"]["creationTimestamp"], ready["lastTransitionTime"]
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def test_the_first_pod_proves_what_it_compiled(warmed: Serving) -> None:
    (pod,) = warmed.pods("unified")
    told, kernels = proof(pod), warmed.state(pod)["kernels"]
    assert (told["compiled"], told["reused"], told["error"]) == (2, 0, "")
    assert told["manifest"] == kernels["manifest"]
    assert (kernels["compiled"], kernels["reused"]) == (0, 2)  # by the engine, after the warm-up
    condition = warmed.conditions()["KernelsWarm"]
    assert (condition["status"], condition["reason"]) == ("True", "Warm")
    assert "2 artefacts compiled, 0 reused" in condition["message"]


def test_compiled_graphs_answer_without_compiling(warmed: Serving) -> None:
    known = "The value of fig is 12. The value of plum is 47. What is the value of plum?"
    with httpx.Client(base_url=warmed.url, timeout=120) as client:
        for tokens in (1, 300):  # a step of one token, and a prompt of several chunks
            answer = warmed.complete(client, [20] * tokens, max_tokens=4)
            assert answer.status_code == 200, answer.text
        said = client.post(
            "/v1/chat/completions",
            json={
                "model": "tiny",
                "temperature": 0,
                "messages": [{"role": "user", "content": known}],
            },
        ).json()
    assert "47" in said["choices"][0]["message"]["content"]
    assert warmed.states("unified")[0]["kernels"]["compiles_after_ready"] == 0
    assert warmed.conditions()["KernelsWarm"]["status"] == "True"


def test_the_second_pod_of_a_revision_compiles_nothing(warmed: Serving) -> None:
    warmed.apply(unified={"replicas": 2, "resources": RESOURCES})
    warmed.settled()
    cold, warm = sorted(warmed.pods("unified"), key=lambda pod: str(pod["metadata"]["name"]))
    assert (
        warm["metadata"]["labels"]["pdserving.io/revision"]
        == (cold["metadata"]["labels"]["pdserving.io/revision"])
    )
    told, kernels = proof(warm), warmed.state(warm)["kernels"]
    assert (told["compiled"], told["reused"], told["error"]) == (0, 2, "")
    assert told["manifest"] == kernels["manifest"] == proof(cold)["manifest"]
    assert (kernels["compiled"], kernels["compiles_after_ready"]) == (0, 0)
    condition = warmed.conditions()["KernelsWarm"]
    assert (condition["status"], condition["reason"]) == ("True", "Warm")
    for name, pod in (("cold", cold), ("warm", warm)):
        print(
            f"{name}: Ready {start_seconds(pod):.0f} s after creation, of which its warm-up took "
            f"{proof(pod)['seconds']} s and compiled {proof(pod)['compiled']} graphs"
        )
