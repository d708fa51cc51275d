"""Owners of fields on a real API server: what is made, changed and removed, and what others edit.

As in test_operator_process.py nothing runs here: the router has no replicas, engines find no node.
What tests/operator/field_owners.py models is what the API server does in these tests.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pds_cluster import testing
from running import CHAT, OperatorProcess, eventually, listed

pytestmark = pytest.mark.cluster

ENV = [{"name": "DEBUG", "value": "1"}]
SIDE = {"name": "side", "image": "localhost/side:1", "command": ["sleep", "1"]}
FULL: dict[str, Any] = {
    "replicas": 0,
    "service": {"port": 8000, "annotations": {"example.com/internal": "true"}},
    "auth": {"secretName": "keys"},
    "podTemplate": {
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "router", "env": ENV}, SIDE],
        }
    },
}
CHANGED = {
    "replicas": 0,
    "service": {"port": 80, "annotations": {"example.com/internal": "false"}},
    "auth": {"secretName": "other"},
    "podTemplate": {
        "spec": {
            "nodeSelector": {"zone": "a"},
            "containers": [
                {"name": "router", "env": [{"name": "DEBUG", "value": "2"}]},
                {**SIDE, "name": "other"},
            ],
        }
    },
}
PLAIN = {"replicas": 0, "service": {"port": 80}}


@pytest.fixture(scope="module")
def operator(cluster, namespace, tmp_path_factory) -> Iterator[OperatorProcess]:
    running = OperatorProcess(cluster, namespace, tmp_path_factory.mktemp("operator"))
    eventually(running.metrics)
    yield running
    running.stop()


def ask(cluster: testing.Cluster, namespace: str, router: dict[str, Any]) -> None:
    cluster.apply({**CHAT, "spec": {**CHAT["spec"], "router": router}}, namespace=namespace)


def parts(cluster: testing.Cluster, namespace: str) -> dict[str, Any]:
    template = cluster.get("deployment", "chat-router", namespace)["spec"]["template"]["spec"]
    service = cluster.get("service", "chat", namespace)
    [router] = [item for item in template["containers"] if item["name"] == "router"]
    return {
        "annotations": service["metadata"]["annotations"].get("example.com/internal"),
        "selector": sorted(service["spec"]["selector"]),
        "ports": [port["port"] for port in service["spec"]["ports"]],
        "nodeSelector": template.get("nodeSelector"),
        "containers": sorted(item["name"] for item in template["containers"]),
        "auth": [v["secret"]["secretName"] for v in template["volumes"] if v["name"] == "auth"],
        "mounts": [m["name"] for m in router["volumeMounts"] if m["name"] == "auth"],
        "debug": [item["value"] for item in router["env"] if item["name"] == "DEBUG"],
    }


def rests(operator: OperatorProcess) -> None:
    """Whole rounds go by without a write, once status says what has lasted for half a minute."""

    def quiet() -> bool:
        before, rounds = operator.writes(), operator.metrics()["pds_operator_rounds_total"]
        eventually(lambda: operator.metrics()["pds_operator_rounds_total"] >= rounds + 4)
        return operator.writes() == before

    eventually(quiet, 90)


SELECTOR = ["pdserving.io/name", "pdserving.io/role"]
REMOVED = {
    "annotations": None,
    "selector": SELECTOR,
    "ports": [80],
    "nodeSelector": None,
    "containers": ["router"],
    "auth": [],
    "mounts": [],
    "debug": [],
}


def test_what_is_made_changed_and_removed(cluster, namespace, operator):
    ask(cluster, namespace, FULL)
    eventually(lambda: listed(cluster, namespace, "deployments"))
    assert parts(cluster, namespace) == {
        "annotations": "true",
        "selector": SELECTOR,
        "ports": [8000],
        "nodeSelector": {"disk": "ssd"},
        "containers": ["router", "side"],
        "auth": ["keys"],
        "mounts": ["auth"],
        "debug": ["1"],
    }
    rests(operator)
    changed = {
        "annotations": "false",
        "selector": SELECTOR,
        "ports": [80],
        "nodeSelector": {"zone": "a"},
        "containers": ["other", "router"],
        "auth": ["other"],
        "mounts": ["auth"],
        "debug": ["2"],
    }
    ask(cluster, namespace, CHANGED)
    eventually(lambda: parts(cluster, namespace) == changed)
    rests(operator)
    ask(cluster, namespace, PLAIN)
    eventually(lambda: parts(cluster, namespace) == REMOVED)
    rests(operator)


def test_replicas_that_are_taken_out_of_the_spec_stay_as_they_are(cluster, namespace, operator):
    ask(cluster, namespace, {**PLAIN, "replicas": 0})
    rests(operator)
    ask(cluster, namespace, {"service": {"port": 80}, "auth": {"secretName": "keys"}})
    eventually(lambda: parts(cluster, namespace)["auth"] == ["keys"])
    rests(operator)
    assert cluster.get("deployment", "chat-router", namespace)["spec"]["replicas"] == 0
    ask(cluster, namespace, PLAIN)
    eventually(lambda: parts(cluster, namespace) == REMOVED)


RENUMBERED = {"name": "http", "port": 9999, "targetPort": 1}
GONE = {"$patch": "delete", "port": 80}
ROUTER_PORTS = [
    {"name": "http", "containerPort": 8765},
    {"$patch": "delete", "containerPort": 8000},
]
EDITS: list[tuple[str, str, dict[str, Any]]] = [
    ("service", "chat", {"spec": {"selector": {"stranger": "yes"}}}),
    ("service", "chat", {"spec": {"ports": [{"name": "more", "port": 81}]}}),
    ("service", "chat", {"spec": {"ports": [RENUMBERED, GONE]}}),
    ("configmap", "chat-router", {"data": {"more.json": "{}"}}),
    ("poddisruptionbudget", "chat-decode", {"spec": {"minAvailable": 0}}),
    ("networkpolicy", "chat-engine", {"spec": {"egress": [{}]}}),
    ("rolebinding", "chat-router", {"subjects": [{"kind": "User", "name": "eve"}]}),
    (
        "deployment",
        "chat-router",
        {"spec": {"template": {"spec": {"nodeSelector": {"x": "y"}, "containers": [SIDE]}}}},
    ),
    (
        "deployment",
        "chat-router",
        {
            "spec": {
                "template": {"spec": {"containers": [{"name": "router", "ports": ROUTER_PORTS}]}}
            }
        },
    ),
]
FIELDS = ("spec", "data", "subjects", "roleRef")


@pytest.mark.parametrize(
    "manager", ["pds-operator", pytest.param("kubectl-edit", marks=pytest.mark.soak)]
)
def test_edits_are_restored(cluster, namespace, operator, manager):
    """Those of strangers, and what the release before might have left: ours, by an update."""

    def seen(kind: str, name: str) -> dict[str, Any]:
        live = cluster.get(kind, name, namespace)
        return {key: live[key] for key in FIELDS if key in live}

    before = [seen(kind, name) for kind, name, _ in EDITS]
    for kind, name, patch in EDITS:
        words = ("-n", namespace, "patch", kind, name, f"--field-manager={manager}")
        cluster.kubectl(*words, "--type=strategic", "-p", json.dumps(patch))
    eventually(lambda: [seen(kind, name) for kind, name, _ in EDITS] == before)
    rests(operator)


def test_what_the_release_before_left_standing_goes(cluster, namespace, operator):
    """It POSTed an annotation, and took it out of what it applied."""
    words = ("-n", namespace, "annotate", "service", "chat", "left=over")
    cluster.kubectl(*words, "--field-manager=pds-operator")

    def left() -> bool:
        return "left" in cluster.get("service", "chat", namespace)["metadata"]["annotations"]

    eventually(lambda: not left())
    text = cluster.kubectl(
        *("-n", namespace, "get", "service", "chat", "-o", "json", "--show-managed-fields")
    )
    entries = json.loads(text)["metadata"]["managedFields"]
    ours = [entry["operation"] for entry in entries if entry["manager"] == "pds-operator"]
    assert ours == ["Apply"]
    rests(operator)


def test_a_pod_that_somebody_relabels_is_what_it_was(cluster, namespace, operator):
    before = cluster.get("pod", "chat-p-0-0-0", namespace)["metadata"]
    words = ("-n", namespace, "label", "--overwrite", "pod", "chat-p-0-0-0")
    for label in ("pdserving.io/group=7", "pdserving.io/attempt=x", "pdserving.io/name=other"):
        cluster.kubectl(*words, label)

        def mended() -> bool:
            meta = cluster.get("pod", "chat-p-0-0-0", namespace)["metadata"]
            return bool(meta["labels"] == before["labels"] and meta["uid"] == before["uid"])

        eventually(mended)
    rests(operator)
