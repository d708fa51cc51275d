"""Every CEL rule with an object that it accepts and one that it refuses, on the real API server."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pds_cluster import testing
from pds_cluster.errors import ClusterError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster

PAIR: dict[str, Any] = {
    "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
    "prefill": {},
    "decode": {},
}


@pytest.fixture
def tried(cluster: testing.Cluster, definition: None) -> Callable[..., str]:
    """What the API server has against a spec; nothing when it accepts it."""

    def attempt(spec: dict[str, Any], name: str = "cel") -> str:
        obj = {
            "apiVersion": "pdserving.io/v1alpha1",
            "kind": "PDServing",
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec,
        }
        try:
            cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(obj))
        except ClusterError as error:
            return str(error)
        return ""

    return attempt


def changed(path: str, value: Any, base: dict[str, Any] = PAIR) -> dict[str, Any]:
    spec = copy.deepcopy(base)
    *parents, last = path.split(".")
    node = spec
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return spec


def both(path: str, prefill: Any, decode: Any) -> dict[str, Any]:
    return changed(f"decode.{path}", decode, changed(f"prefill.{path}", prefill))


ALONE = {"model": PAIR["model"], "unified": {}}
FILLED = {"volume": {"existingClaim": "c"}, "warmup": {"targets": ["sm_90", "sm_100"]}}
GPU = {"limits": {"nvidia.com/gpu": 2}}

CASES = [
    ("unified xor pair", {"model": PAIR["model"], "unified": {}}, changed("unified", {}), "either"),
    ("a pair is two", PAIR, {"model": PAIR["model"], "prefill": {}}, "prefill and decode together"),
    (
        "one source",
        changed("model.source", {"pvc": {"claimName": "m"}}),
        changed("model.source", {"path": "/m", "pvc": {"claimName": "m"}}),
        "exactly one of path, pvc and image",
    ),
    (
        "some source",
        changed("model.source", {"image": {"reference": "r/m:1"}}),
        changed("model.source", {}),
        "exactly one of path, pvc and image",
    ),
    (
        "one kvDtype",
        both("engine.kvDtype", "float16", "float16"),
        both("engine.kvDtype", "float16", "bfloat16"),
        "one kvDtype",
    ),
    (
        "kvDtype against the model's",
        changed("prefill.engine.kvDtype", "bfloat16"),
        changed("prefill.engine.kvDtype", "float32"),
        "one kvDtype",
    ),
    (
        "one pageSize",
        changed("engine.pageSize", 32, changed("prefill.engine.pageSize", 32)),
        changed("prefill.engine.pageSize", 32),
        "one pageSize",
    ),
    (
        "something moves",
        changed("rollout", {"maxSurge": 0, "maxUnavailable": 1}),
        changed("rollout", {"maxSurge": 0, "maxUnavailable": 0}),
        "cannot both be zero",
    ),
    (
        "something moves, left out",
        changed("rollout", {"maxUnavailable": 0}),
        changed("rollout", {"maxSurge": "0%"}),
        "cannot both be zero",
    ),
    (
        "a deadline beyond what it must hold",
        changed("rollout", {"progressDeadlineSeconds": 61, "minReadySeconds": 60}),
        changed("rollout", {"progressDeadlineSeconds": 60, "minReadySeconds": 60}),
        "more than minReadySeconds",
    ),
    (
        "a partition of the steps",
        changed("rollout", {"partition": "50%", "paused": True}),
        changed("rollout.partition", "half"),
        "a number of groups or a percentage",
    ),
    (
        "percentages",
        changed("rollout.maxSurge", "25%"),
        changed("rollout.maxSurge", "a%"),
        "a number of groups or a percentage",
    ),
    (
        "no negative surge",
        changed("rollout.maxSurge", 3),
        changed("rollout.maxSurge", -1),
        "a number of groups or a percentage",
    ),
    (
        "one volume",
        changed("compileCache.volume", {"ephemeral": {}}),
        changed("compileCache.volume", {"ephemeral": {}, "existingClaim": "c"}),
        "exactly one of claim",
    ),
    (
        "retain needs a claim",
        changed("compileCache.volume", {"claim": {"size": "1Gi"}, "retain": True}),
        changed("compileCache.volume", {"ephemeral": {}, "retain": True}),
        "retain",
    ),
    (
        "targets fill what pods share",
        changed("compileCache", FILLED),
        changed("compileCache", {**FILLED, "volume": {"ephemeral": {}}}),
        "warmup.targets fills a volume that pods share",
    ),
    (
        "each target once",
        changed("compileCache", FILLED),
        changed("compileCache.warmup.targets", ["sm_90", "sm_90"], changed("compileCache", FILLED)),
        "warmup.targets names a GPU type twice",
    ),
    (
        "targets are GPU types",
        changed("compileCache", FILLED),
        changed("compileCache.warmup.targets", ["sm90"], changed("compileCache", FILLED)),
        "compileCache.warmup.targets[0]",
    ),
    (
        "targets need a warm-up",
        changed("compileCache", FILLED),
        changed("compileCache.warmup.enabled", False, changed("compileCache", FILLED)),
        "warmup.targets needs warmup.enabled",
    ),
    (
        "a selector of the Jobs of targets",
        changed("compileCache.warmup.nodeSelector", {"p": "c"}, changed("compileCache", FILLED)),
        changed("compileCache", {"warmup": {"nodeSelector": {"p": "c"}}}),
        "warmup.nodeSelector is of the Jobs",
    ),
    (
        "whole pods",
        changed("prefill", {"parallelism": {"pp": 2, "tp": 2}, "ranksPerPod": 2}),
        changed("prefill", {"parallelism": {"pp": 3}, "ranksPerPod": 2}),
        "ranksPerPod must divide",
    ),
    (
        "whole pods of dp ranks",
        changed("decode", {"parallelism": {"dp": 2, "tp": 2}, "ranksPerPod": 2}),
        changed("decode", {"parallelism": {"dp": 3}, "ranksPerPod": 2}),
        "ranksPerPod must divide",
    ),
    (
        "as many data-parallel ranks as a leader has control ports",
        changed("decode", {"parallelism": {"dp": 64}}),
        changed("decode", {"parallelism": {"dp": 65}}),
        "less than or equal to 64",
    ),
    (
        "as many ranks as a pod has KV ports",
        changed("decode", {"parallelism": {"pp": 2, "tp": 64}, "ranksPerPod": 64}),
        changed("decode", {"parallelism": {"pp": 2, "tp": 65}, "ranksPerPod": 65}),
        "less than or equal to 64",
    ),
    (
        "layers of every stage",
        changed("prefill", {"parallelism": {"pp": 2, "layers": [3, 1]}}),
        changed("prefill", {"parallelism": {"pp": 2, "layers": [4]}}),
        "one count for each",
    ),
    (
        "experts split whole or not",
        changed("decode", {"parallelism": {"dp": 2, "ep": True}}),
        changed("decode", {"parallelism": {"dp": 2, "ep": 2}}),
        "ep",
    ),
    (
        "a GPU per rank",
        changed("decode", {"parallelism": {"tp": 2}, "ranksPerPod": 2, "resources": GPU}),
        changed("decode", {"parallelism": {"tp": 2}, "resources": GPU}),
        "one GPU per rank",
    ),
    (
        "a GPU per dp rank",
        changed("unified", {"parallelism": {"dp": 4}, "ranksPerPod": 2, "resources": GPU}, ALONE),
        changed("unified", {"parallelism": {"dp": 4}, "ranksPerPod": 4, "resources": GPU}, ALONE),
        "one GPU per rank",
    ),
    (
        "seconds that a prompt waits",
        changed("engine", {"delayer": {"restTicks": 0, "maxSeconds": 0.5}}),
        changed("engine", {"delayer": {"maxSeconds": 0}}),
        "maxSeconds must be above 0",
    ),
    (
        "a share of memory",
        changed("engine", {"kvMemoryFraction": 1}),
        changed("engine", {"kvMemoryFraction": 0}),
        "kvMemoryFraction must be at least 0.01",
    ),
    (
        "a chunk holds a page",
        changed("engine", {"chunkSize": 16, "pageSize": 16}),
        changed("engine", {"chunkSize": 8, "pageSize": 16}),
        "at least one page",
    ),
]


@pytest.mark.parametrize(
    ("accepted", "refused", "named"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_rule(tried, accepted, refused, named):
    assert tried(accepted) == ""
    assert named in tried(refused)


def test_names_of_at_most_forty_characters(tried):
    assert tried(PAIR, "x" * 40) == ""
    assert "at most 40 characters" in tried(PAIR, "x" * 41)


def test_an_unknown_key_is_refused_by_name(tried):
    assert "chunkSise" in tried(changed("engine.chunkSise", 5))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_pass_server_side_validation(cluster, definition, path):
    output = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(path))
    assert "(server dry run)" in output
