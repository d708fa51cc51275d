"""Warm-up on an empty volume, beside a Job for a GPU that is not there; later pods find it all.

What was built is counted from what each warm-up said, and from what lies on the volume. The seconds
from creation to Ready are printed (`pytest -rP`), and not asserted.
"""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from pds_engine.artefacts.libraries import DENSE
from pds_operator import names
from serving import COLD, Object, Serving, proof

pytestmark = pytest.mark.cluster

LIBRARIES = len(DENSE)
"""Of every rank, whatever its role and its layers."""
PODS = 4
"""Of a prefill and a decode group of two stages."""
TARGET = "sm_90"
CACHE, KEYS = "/var/cache/pds", "/etc/pds/cache-key"


@dataclass(frozen=True)
class Said:
    """A line of a warm-up: where one artefact came from."""

    artefact: str
    source: str
    container: str
    """Of which pod: `pod/container`."""


def said(serving: Serving, pods: list[Object]) -> list[Said]:
    """All that the warm-ups of `pods` said of artefacts, a line each."""
    found = []
    for pod in pods:
        spec, name = pod["spec"], pod["metadata"]["name"]
        steps = [each["name"] for each in [*spec.get("initContainers", []), *spec["containers"]]]
        for step in (step for step in steps if step != "engine"):
            log = serving.cluster.kubectl("-n", serving.namespace, "logs", name, "-c", step)
            entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
            found += [
                Said(each["artefact"], each["source"], f"{name}/{step}")
                for each in entries
                if "artefact" in each
            ]
    return found


def built(lines: list[Said]) -> Counter[str]:
    return Counter(each.artefact for each in lines if each.source == "built")


def stored(serving: Serving, kind: str) -> list[Object]:
    """What lies on the claim's volume, a folder of this machine: of each artefact its meta.json."""
    claim = serving.cluster.get("pvc", f"{serving.name}-cache", serving.namespace)
    root = serving.cluster.settings.volumes / claim["spec"]["volumeName"]
    folders = [path.parent for path in Path(root).glob(f"v1/{kind}/*/*/.committed")]
    return [json.loads((folder / "meta.json").read_text()) for folder in folders]


def start_seconds(pod: Object) -> float:
    """From creation to Ready."""
    ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    begun, ended = pod["metadata"]["creationTimestamp"], ready["lastTransitionTime"]
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def engine_pods(serving: Serving) -> list[Object]:
    return [*serving.pods("prefill"), *serving.pods("decode")]


def assert_warm(serving: Serving) -> str:
    """Its message."""
    condition = serving.conditions()["KernelsWarm"]
    assert (condition["status"], condition["reason"]) == ("True", "Warm")
    return str(condition["message"])


def test_four_pods_at_once_build_each_artefact_once(cold: Serving) -> None:
    pods = engine_pods(cold)
    assert len(pods) == PODS
    lines = said(cold, pods)
    assert sorted(built(lines).values()) == [1] * LIBRARIES
    assert Counter(each.artefact for each in lines) == dict.fromkeys(built(lines), PODS)
    on_volume = [(meta["inputs"]["library"], meta["producer"]) for meta in stored(cold, "cpp")]
    builders = {(each.artefact, each.container) for each in lines if each.source == "built"}
    assert sorted(on_volume) == sorted(
        (artefact, container.partition("/")[0]) for artefact, container in builders
    )
    for pod in pods:
        name = pod["metadata"]["name"]
        of_it = [each.source for each in lines if each.container == f"{name}/warmup"]
        print(f"{name}: Ready after {start_seconds(pod):.0f} s, {', '.join(of_it)}")


def test_what_engines_loaded_is_what_their_warm_ups_proved(cold: Serving) -> None:
    proofs = [proof(pod) for pod in engine_pods(cold)]
    assert [each["error"] for each in proofs] == [""] * PODS
    assert [each["compiled"] + each["reused"] for each in proofs] == [LIBRARIES] * PODS
    assert sum(each["compiled"] for each in proofs) == LIBRARIES
    kernels = [cold.states(role)[0]["kernels"] for role in ("prefill", "decode")]
    manifests = {each["manifest"] for each in (*proofs, *kernels)}
    assert len(manifests) == 1
    # By the engines, after the warm-up: both ranks of a group.
    assert [(each["compiled"], each["reused"]) for each in kernels] == [(0, 2 * LIBRARIES)] * 2
    message = assert_warm(cold)
    assert f"{LIBRARIES} artefacts compiled, {(PODS - 1) * LIBRARIES} reused" in message
    assert f"manifest {manifests.pop()[:12]}" in message


def test_compiled_kernels_answer_without_compiling(cold: Serving) -> None:
    known = "The value of fig is 12. The value of plum is 47. What is the value of plum?"
    with httpx.Client(base_url=cold.url, timeout=120) as client:
        for tokens in (1, 300):  # a step of one token, and a prompt of several chunks
            answer = cold.complete(client, [20] * tokens, max_tokens=4)
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
    for state in (*cold.states("prefill"), *cold.states("decode")):
        assert state["kernels"]["compiles_after_ready"] == 0
    assert_warm(cold)


def test_a_job_fills_the_volume_for_a_gpu_that_is_not_there(cold: Serving) -> None:
    """By one pod beside the others, which have artefacts of their own on the same volume."""
    done = f"for {TARGET}: compiled"
    cold.until(done, lambda: done in cold.conditions()["KernelsWarm"]["message"], COLD)
    (pod,) = [each for each in cold.pods("warmup") if names.TARGET in each["metadata"]["labels"]]
    lines = said(cold, [pod])
    steps = Counter(each.container for each in lines)
    assert len(steps) == PODS  # one for each pod of each role
    assert set(built(lines)) == {each.artefact for each in lines}
    assert set(built(lines).values()) == {1}
    on_volume = stored(cold, "triton")
    assert {meta["inputs"]["target"] for meta in on_volume} == {TARGET}
    assert len(on_volume) == len(built(lines))
    engine = cold.pods("decode")[0]
    command = engine["spec"]["containers"][0]["command"][0]
    words = (command, "cache", "verify", CACHE, "--keys", KEYS, "--target", TARGET)
    assert f"{len(on_volume)} artefacts for {TARGET}, 0 damaged" in cold.exec(engine, *words)
    assert len(stored(cold, "cpp")) == LIBRARIES
    assert_warm(cold)


def test_pods_of_the_next_revision_compile_nothing(compiled: Serving) -> None:
    """Of another layout: groups of one stage run the same kernels."""
    pods = engine_pods(compiled)
    for pod, found in ((pod, proof(pod)) for pod in pods):
        assert (found["compiled"], found["reused"], found["error"]) == (0, LIBRARIES, "")
        kernels = compiled.state(pod)["kernels"]
        assert found["manifest"] == kernels["manifest"]
        assert (kernels["compiled"], kernels["compiles_after_ready"]) == (0, 0)
        name, seconds = pod["metadata"]["name"], found["seconds"]
        print(f"{name}: Ready after {start_seconds(pod):.0f} s, {seconds} s of them its warm-up")
    assert len(pods) == 2
    assert len(stored(compiled, "cpp")) == LIBRARIES
    assert_warm(compiled)
