"""Warm-up on the shared volume: the first pods of a revision compile, the next finds it all.

The seconds from creation to Ready are printed side by side (`pytest -rP`). They are not asserted:
what is, is that each graph was compiled once, and that the next pod compiled nothing.
"""

from datetime import datetime

import httpx
import pytest
from serving import Object, Serving, proof

pytestmark = pytest.mark.cluster

GRAPHS = 2
"""Of every rank, whatever its role and its layers."""


def start_seconds(pod: Object) -> float:
    """From creation to Ready."""
    ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    begun, ended = pod["metadata"]["creationTimestamp"], ready["lastTransitionTime"]
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def test_the_first_pods_prove_what_they_compiled(compiled: Serving) -> None:
    """Both at once, on one volume: each graph is compiled by one of them."""
    pods = [*compiled.pods("prefill"), *compiled.pods("decode")]
    proofs, kernels = [proof(pod) for pod in pods], [compiled.state(pod)["kernels"] for pod in pods]
    assert [each["error"] for each in proofs] == ["", ""]
    assert [each["compiled"] + each["reused"] for each in proofs] == [GRAPHS, GRAPHS]
    assert sum(each["compiled"] for each in proofs) == GRAPHS
    assert [each["manifest"] for each in proofs] == [each["manifest"] for each in kernels]
    # By the engines, after the warm-up.
    assert [(each["compiled"], each["reused"]) for each in kernels] == [(0, GRAPHS)] * 2
    assert_warm(compiled)
    message = compiled.conditions()["KernelsWarm"]["message"]
    assert f"{GRAPHS} artefacts compiled, {GRAPHS} reused" in message


def assert_warm(serving: Serving) -> None:
    condition = serving.conditions()["KernelsWarm"]
    assert (condition["status"], condition["reason"]) == ("True", "Warm")


def test_compiled_graphs_answer_without_compiling(compiled: Serving) -> None:
    known = "The value of fig is 12. The value of plum is 47. What is the value of plum?"
    with httpx.Client(base_url=compiled.url, timeout=120) as client:
        for tokens in (1, 300):  # a step of one token, and a prompt of several chunks
            answer = compiled.complete(client, [20] * tokens, max_tokens=4)
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
    for state in (*compiled.states("prefill"), *compiled.states("decode")):
        assert state["kernels"]["compiles_after_ready"] == 0
    assert_warm(compiled)


def test_the_next_pod_of_a_revision_compiles_nothing(compiled: Serving) -> None:
    compiled.sized(prefill=2)
    cold, warm = sorted(compiled.pods("prefill"), key=lambda pod: str(pod["metadata"]["name"]))
    assert (
        warm["metadata"]["labels"]["pdserving.io/revision"]
        == (cold["metadata"]["labels"]["pdserving.io/revision"])
    )
    found, kernels = proof(warm), compiled.state(warm)["kernels"]
    assert (found["compiled"], found["reused"], found["error"]) == (0, GRAPHS, "")
    assert found["manifest"] == kernels["manifest"] == proof(cold)["manifest"]
    assert (kernels["compiled"], kernels["compiles_after_ready"]) == (0, 0)
    assert_warm(compiled)
    for name, pod in (("cold", cold), ("warm", warm)):
        print(
            f"{name}: Ready {start_seconds(pod):.0f} s after creation, of which its warm-up took "
            f"{proof(pod)['seconds']} s and compiled {proof(pod)['compiled']} graphs"
        )
