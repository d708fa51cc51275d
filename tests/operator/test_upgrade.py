"""A new version of the operator and of its definition: what runs goes on as it is.

Pods find no node here, as in test_operator_process.py: what is shown is that none is made anew.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pds_cluster import testing
from running import CHAT, CHAT_PODS, OperatorProcess, eventually, listed

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
NEWER = {
    "image": {"repository": "localhost/of-another-version", "tag": "9.9.9"},
    "podDefaults": {"env": [{"name": "OF_ANOTHER_VERSION", "value": "yes"}]},
}
"""Defaults that every pod would have if it were rendered now."""


@pytest.fixture
def namespace(cluster: testing.Cluster, definition: None, alone: None) -> Iterator[str]:
    with cluster.namespace() as name:
        yield name


def engines(cluster: testing.Cluster, namespace: str) -> dict[str, str]:
    """UID and generation of each engine pod, by name."""
    words = ("-n", namespace, "get", "pods", "-o", "json")
    text = cluster.kubectl(*words, "-l", "pdserving.io/name=chat,pdserving.io/role!=router")
    return {
        item["metadata"]["name"]: f"{item['metadata']['uid']} {item['metadata'].get('generation')}"
        for item in json.loads(text)["items"]
    }


def define(cluster: testing.Cluster, **defaults: object) -> None:
    """Apply the tree's definition of PDServing, with defaults for fields of spec."""
    tree = next(yaml.safe_load_all((ROOT / "crds" / "pdservings.yaml").read_text()))
    [version] = tree["spec"]["versions"]
    fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for name, value in defaults.items():
        fields[name]["default"] = value
    words = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    cluster.kubectl(*words, stdin=json.dumps(tree))
    cluster.wait("crd/pdservings.pdserving.io", "Established", "default")


def rounds(operator: OperatorProcess, count: int) -> None:
    """Wait until the operator has looked so many times more."""
    before = operator.metrics()["pds_operator_rounds_total"]
    eventually(lambda: operator.metrics()["pds_operator_rounds_total"] >= before + count)


def test_a_new_operator_and_new_defaults_restart_no_pod(cluster, namespace, tmp_path):
    operator = OperatorProcess(cluster, namespace, tmp_path)
    cluster.apply(CHAT, namespace=namespace)
    before = eventually(lambda: len(found := engines(cluster, namespace)) == CHAT_PODS and found)
    eventually(operator.metrics)
    rounds(operator, 1)
    revisions = listed(cluster, namespace, "controllerrevisions")
    operator.stop()

    define(cluster, rollout={"progressDeadlineSeconds": 900})
    settings = yaml.safe_load(operator.config.read_text())
    operator.config.write_text(yaml.safe_dump(settings | NEWER))
    operator.start()
    try:
        eventually(operator.metrics)
        read = cluster.get("pdserving", "chat", namespace)
        assert read["spec"]["rollout"] == {"progressDeadlineSeconds": 900}
        rounds(operator, 2)
        assert engines(cluster, namespace) == before
        assert listed(cluster, namespace, "controllerrevisions") == revisions
        routers = cluster.get("deployment", "chat-router", namespace)["spec"]["template"]["spec"]
        assert routers["containers"][0]["image"] == "localhost/of-another-version:9.9.9"
    finally:
        operator.stop()
        define(cluster)
