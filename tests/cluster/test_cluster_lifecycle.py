"""The local cluster does what a pod of ours asks of a Kubernetes."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pds_cluster import local_values
from pds_cluster.settings import DEV_IMAGE, TREE, UID
from pds_cluster.testing import Cluster

pytestmark = pytest.mark.cluster

VENV = Path(sys.prefix)
MOUNTS = local_values.mounts(TREE, VENV, Path(sys.base_prefix))
SHARED = local_values.values(TREE, VENV, MOUNTS)["podDefaults"]
PYTHON = f"{VENV}/bin/python"


@pytest.fixture(autouse=True)
def _local(cluster: Cluster) -> None:
    if not cluster.is_local:
        pytest.skip("is about the local cluster, and PDS_CONTEXT names one of your own")


def container(name: str, script: str, **more: Any) -> dict[str, Any]:
    """A container of the working tree's image, under the restrictions that our operator sets."""
    mounts = [*SHARED["volumeMounts"], *more.pop("volumeMounts", [])]
    return {
        "name": name,
        "image": DEV_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "env": SHARED["env"],
        "volumeMounts": mounts,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
    }


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    volumes = [*SHARED["volumes"], {"name": "tmp", "emptyDir": {}}, *spec.pop("volumes", [])]
    for one in (*containers, *spec.get("initContainers", [])):
        one["volumeMounts"] = [*one["volumeMounts"], {"name": "tmp", "mountPath": "/tmp"}]
    security = {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": security,
            "containers": list(containers),
            "volumes": volumes,
            **spec,
        },
    }


@pytest.fixture(scope="module")
def web(cluster: Cluster, namespace: str) -> str:
    """A pod that serves a page which its init container wrote, behind a Service `pages`."""
    serve = f"echo serving; exec {PYTHON} -m http.server --directory /tmp 8000"
    ready = {"httpGet": {"path": "/page", "port": 8000}, "periodSeconds": 1}
    page = container("page", "echo 'written before the start' > /tmp/page")
    server = container("server", serve, readinessProbe=ready)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "pages"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    cluster.apply(pod("web", server, initContainers=[page]), service, namespace=namespace)
    cluster.wait("pod/web", "Ready", namespace)
    return "web"


def test_pod_with_init_container_becomes_ready(cluster: Cluster, namespace: str, web: str) -> None:
    status = cluster.get("pod", web, namespace)["status"]
    assert status["phase"] == "Running"
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert status["containerStatuses"][0]["restartCount"] == 0


def test_logs(cluster: Cluster, namespace: str, web: str) -> None:
    assert "serving" in cluster.kubectl("-n", namespace, "logs", web)


def test_exec_runs_as_our_user_and_can_name_it(cluster: Cluster, namespace: str, web: str) -> None:
    script = "import getpass, os, pwd; print(os.getuid(), pwd.getpwuid(os.getuid()).pw_name)"
    said = cluster.kubectl("-n", namespace, "exec", web, "--", PYTHON, "-c", script)
    assert said.split() == [str(UID), "pds"]


def test_the_working_tree_runs_in_a_pod(cluster: Cluster, namespace: str, web: str) -> None:
    script = "import pds_engine, pydantic; print(pds_engine.__path__[0])"
    said = cluster.kubectl("-n", namespace, "exec", web, "--", PYTHON, "-c", script)
    assert said.strip() == str(TREE / "engine" / "pds_engine")


def test_the_mounted_tree_is_read_only(cluster: Cluster, namespace: str, web: str) -> None:
    command = cluster.command("-n", namespace, "exec", web, "--", "touch", f"{TREE}/written")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_port_forward(cluster: Cluster, namespace: str, web: str) -> None:
    with (
        cluster.forward("service/pages", 80, namespace) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=10) as answer,
    ):
        assert answer.read() == b"written before the start\n"


def test_service_by_name_from_another_pod(cluster: Cluster, namespace: str, web: str) -> None:
    fetch = "import urllib.request as r; print(r.urlopen('http://pages/page').read().decode())"
    cluster.apply(
        pod("client", container("client", f'{PYTHON} -c "{fetch}"'), restartPolicy="Never"),
        namespace=namespace,
    )
    cluster.wait("pod/client", "jsonpath={.status.phase}=Succeeded", namespace)
    assert "written before the start" in cluster.kubectl("-n", namespace, "logs", "client")


def test_a_pod_reaches_its_own_service(cluster: Cluster, namespace: str, web: str) -> None:
    """Hairpin traffic: the answer comes from the pod that asks."""
    fetch = "import urllib.request as r; print(r.urlopen('http://pages/page', timeout=5).status)"
    assert cluster.kubectl("-n", namespace, "exec", web, "--", PYTHON, "-c", fetch).strip() == "200"


def test_a_pod_reaches_the_api_with_its_account(cluster: Cluster, namespace: str) -> None:
    """By the address that Kubernetes puts into every pod, trusting only the cluster's authority."""
    script = """
import os, ssl, urllib.request as r
at = "/var/run/secrets/kubernetes.io/serviceaccount/"
request = r.Request("https://kubernetes.default.svc/version")
request.add_header("Authorization", "Bearer " + open(at + "token").read())
print(r.urlopen(request, context=ssl.create_default_context(cafile=at + "ca.crt")).status)
"""
    asking = container("asking", "", command=[PYTHON, "-c", script])
    spec = {"automountServiceAccountToken": True, "restartPolicy": "Never"}
    cluster.apply(pod("asking", asking, **spec), namespace=namespace)
    cluster.wait("pod/asking", "jsonpath={.status.phase}=Succeeded", namespace)
    assert cluster.kubectl("-n", namespace, "logs", "asking") == "200\n"


def test_services_and_pods_can_be_reached_from_the_host(
    cluster: Cluster, namespace: str, web: str
) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    service = cluster.get("service", "pages", namespace)["spec"]["clusterIP"]
    address = cluster.get("pod", web, namespace)["status"]["podIP"]
    for url in (f"http://{service}/page", f"http://{address}:8000/page"):
        with opener.open(url, timeout=10) as answer:
            assert answer.status == 200, url


def test_two_pods_share_a_claim(cluster: Cluster, namespace: str) -> None:
    """A claim binds by the default storage class; what one pod writes (as 65532) another reads."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}
    where = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    writer = container("writer", "echo from the writer > /shared/note; exec sleep 600", **where)
    read = "until [ -s /shared/note ]; do sleep 0.1; done; cat /shared/note; exec sleep 600"
    reader = container("reader", read, readinessProbe=_exists("/shared/note"), **where)
    cluster.apply(
        claim,
        pod("writer", writer, volumes=[volume]),
        pod("reader", reader, volumes=[volume]),
        namespace=namespace,
    )
    cluster.wait("pod/reader", "Ready", namespace)
    assert cluster.kubectl("-n", namespace, "logs", "reader") == "from the writer\n"
    assert cluster.get("pvc", "shared", namespace)["status"]["phase"] == "Bound"


def _exists(path: str) -> dict[str, Any]:
    return {"exec": {"command": ["test", "-s", path]}, "periodSeconds": 1}


def test_a_volume_is_usable_again_once_its_claim_is_gone(
    cluster: Cluster, own_namespace: str
) -> None:
    """And it is empty then: nothing of its former user is left."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "again"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    volume = {"name": "again", "persistentVolumeClaim": {"claimName": "again"}}
    where = {"volumeMounts": [{"name": "again", "mountPath": "/again"}]}
    user = container("user", "echo mine > /again/secret", **where)
    asked = pod("user", user, volumes=[volume], restartPolicy="Never")
    cluster.apply(claim, asked, namespace=own_namespace)
    cluster.wait("pod/user", "jsonpath={.status.phase}=Succeeded", own_namespace)
    used = cluster.get("pvc", "again", own_namespace)["spec"]["volumeName"]
    folder = cluster.settings.volumes / used
    assert (folder / "secret").read_text() == "mine\n"
    cluster.kubectl("-n", own_namespace, "delete", "pod/user", "pvc/again", "--wait=false")
    released = ("wait", f"pv/{used}", "--for=jsonpath={.status.phase}=Released", "--timeout=60s")
    cluster.kubectl(*released)
    with cluster.namespace():  # wipes what is Released
        volume_now = json.loads(cluster.kubectl("get", "pv", used, "-o", "json"))
    assert volume_now["status"]["phase"] == "Available"
    assert list(folder.iterdir()) == []


def test_up_again_is_quick_and_restarts_nothing(cluster: Cluster, namespace: str, web: str) -> None:
    before = {path.name: path.read_text() for path in (cluster.settings.run / "pids").iterdir()}
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pds_cluster", "up"],
        cwd=TREE / "cluster",
        check=True,
        capture_output=True,
    )
    seconds = time.monotonic() - started
    after = {path.name: path.read_text() for path in (cluster.settings.run / "pids").iterdir()}
    assert after == before
    assert seconds < 15  # as long as from nothing; 0.4 on an idle machine
    assert cluster.get("pod", web, namespace)["status"]["containerStatuses"][0]["restartCount"] == 0
