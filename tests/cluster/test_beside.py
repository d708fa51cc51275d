"""Containers that users add beside the engine: one outlives it, others end before it."""

import time

import pytest
from pds_cluster.settings import DEV_IMAGE, PAUSE_IMAGE
from pds_cluster.testing import Cluster
from serving import Object, Serving, manifest
from streams import REST, crowd, known
from workers import BACK, PodProcess, WorkerProcess, comes_back, label

pytestmark = pytest.mark.cluster

REPORTED_WITHIN = 60.0
BESIDE: Object = {
    "name": "beside",
    "image": PAUSE_IMAGE,
    "imagePullPolicy": "Never",
    "args": ["beside"],
}
"""It does nothing, for ever. By its argument it differs from the pod's own pause."""
CRASHES: Object = {
    "name": "crashes",
    "image": DEV_IMAGE,
    "imagePullPolicy": "Never",
    "restartPolicy": "Always",
    "command": ["/bin/sh", "-c", "sleep 1; exit 3"],
    "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
}
"""A native sidecar: its pod is ready for a second, now and then."""
SEEN = 180.0
"""Seconds until it has crashed so often, beside an engine that starts meanwhile."""


@pytest.fixture(scope="module")
def served(operator: Cluster, namespace: str) -> Serving:
    found = Serving(operator, namespace, manifest("beside"))
    template = {"spec": {"containers": [BESIDE]}}
    found.apply(decode={**found.object["spec"]["decode"], "podTemplate": template})
    found.settled()
    return found


def phase(served: Serving, name: str) -> str:
    found = [pod for pod in served.pods("decode") if pod["metadata"]["name"] == name]
    return str(found[0]["status"]["phase"]) if found else "gone"


def test_a_dead_engine_is_replaced_though_its_sidecar_lives(served: Serving) -> None:
    [pod] = served.pods("decode")
    name, attempt = pod["metadata"]["name"], label(pod, "attempt")
    killed = WorkerProcess(pod).kill()
    served.until("noticed", lambda: phase(served, name) != "Running" or _dead(served, name), 30)
    assert phase(served, name) in ("Running", "gone")  # the sidecar goes on
    back = comes_back(served, "decode", label(pod, "group"), attempt + 1, killed)
    print(f"engine dead beside a living sidecar: the group is back in {back:.1f} s")


def _dead(served: Serving, name: str) -> bool:
    for pod in served.pods("decode"):
        if pod["metadata"]["name"] == name:
            statuses = pod["status"]["containerStatuses"]
            return any(s["name"] == "engine" and "terminated" in s["state"] for s in statuses)
    return True


def test_a_dead_sidecar_is_reported_and_the_cure_that_is_named_helps(served: Serving) -> None:
    [pod] = served.pods("decode")
    name = pod["metadata"]["name"]
    killed = PodProcess(pod, "/pause", "beside").kill()
    served.until(
        "reported",
        lambda: served.conditions()["Degraded"]["reason"] == "SidecarEnded",
        REPORTED_WITHIN,
    )
    reported = time.monotonic() - killed
    message = served.conditions()["Degraded"]["message"]
    assert f"pod {name} is not ready: container beside has ended" in message
    cure = f"kubectl delete pod {name}"
    assert cure in message
    served.cluster.kubectl("-n", served.namespace, *cure.split()[1:], "--wait=false")
    back = comes_back(
        served, "decode", label(pod, "group"), label(pod, "attempt") + 1, time.monotonic()
    )
    print(
        f"sidecar dead: reported in {reported:.1f} s; "
        f"its pod deleted: the group is back in {back:.1f} s"
    )
    assert served.conditions()["Degraded"]["status"] == "False"
    served.until("one group", lambda: len(served.pods("decode")) == 1, BACK)


def test_a_native_sidecar_that_crashes_takes_no_old_group_away(served: Serving) -> None:
    good, [old] = served.object, served.pods("decode")
    usr = {"name": "usr", "hostPath": {"path": "/usr", "type": "Directory"}}
    spec = {"initContainers": [CRASHES], "volumes": [usr]}
    with crowd(served.url, known(served, at_least=4), clients=2, rest=REST) as clients:
        clients.goes_on()
        served.apply(decode={**good["spec"]["decode"], "podTemplate": {"spec": spec}})

        def reported() -> str:
            degraded = served.conditions()["Degraded"]
            message = str(degraded["message"])
            whole = degraded["reason"] == "CrashLoopBackOff" and "exit code 3" in message
            return message if whole else ""

        message = served.until("reported", reported, SEEN)
        assert "container crashes" in message
        served.until("its engine has started", lambda: _started(served, old), SEEN)
        clients.goes_on()
        assert old["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in served.pods("decode")}
        served.object = good
        served.apply()
        served.settled()
    assert not clients.troubles
    [left] = served.pods("decode")
    assert left["metadata"]["uid"] == old["metadata"]["uid"]
    print(f"a sidecar that crashes: {len(clients.outcomes)} requests, none failed")


def _started(served: Serving, old: Object) -> bool:
    """The engine of the new pod has."""
    for pod in served.pods("decode"):
        if pod["metadata"]["uid"] != old["metadata"]["uid"]:
            statuses = pod["status"].get("containerStatuses", [])
            return any(s["name"] == "engine" and s.get("started") for s in statuses)
    return False
