"""Cache volumes of 64 KiB and read-only: pods compile for themselves, serve, and say why.

The volumes are hostPaths: a tmpfs on this machine, whose mounts are the node's.
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pds_cluster.testing import Cluster
from serving import Object, Serving, manifest, proof
from streams import REST, crowd, known

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

ROLES = ("prefill", "decode")
COLD = 600
"""Seconds: seven libraries for each of two pods by g++, on two cores that other work shares."""
KINDS = {
    "full": ("rw", "has too little space (", "give it more room"),
    "read-only": ("ro", "is read-only: ", "mount it writable"),
}
"""How it is mounted, and what is reported of it."""


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB that pods may mount: they run as another user."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount(folder, "size=64k,mode=0777")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


def mount(folder: Path, options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(words, check=True)


def serves(serving: Serving) -> bool:
    """Ready and not Progressing, for the newest spec. Degraded it is all along."""
    found, conditions = serving.get(), serving.conditions()
    return (
        found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        and conditions["Ready"]["status"] == "True"
        and conditions["Progressing"]["status"] == "False"
        and all(found["status"][role]["updated"] == 1 for role in ROLES)
    )


def assert_reported(serving: Serving, volume: Path, words: str, cure: str) -> None:
    conditions = serving.conditions()
    degraded, warm = conditions["Degraded"], conditions["KernelsWarm"]
    assert (degraded["status"], degraded["reason"]) == ("True", "CacheVolumeUnusable")
    assert f"hostPath {volume} cannot be used" in degraded["message"]
    assert f"volume at /var/cache/pds {words}" in degraded["message"]
    assert cure in degraded["message"]
    assert (warm["status"], warm["reason"]) == ("True", "WarmPrivate")
    for pod in (pod for role in ROLES for pod in serving.pods(role)):
        assert proof(pod)["error"] == ""
        assert serving.state(pod)["kernels"]["manifest"] == proof(pod)["manifest"]
        assert serving.state(pod)["kernels"]["compiles_after_ready"] == 0


@pytest.mark.parametrize(
    ("first", "then"),
    [("full", "read-only"), ("read-only", "full")],
)
def test_a_bad_volume_costs_sharing_alone_and_rolls_nothing_back(
    operator: Cluster, own_namespace: str, volume: Path, first: str, then: str
) -> None:
    """The service is made on the one, and upgraded under load on the other."""
    cache: Object = {
        "volume": {"hostPath": str(volume)},
        "warmup": {"enabled": True, "workers": 2, "timeoutSeconds": COLD},
    }
    mount(volume, f"remount,{KINDS[first][0]}")
    serving = Serving(operator, own_namespace, manifest("alone", compileCache=cache))
    serving.apply()
    serving.until("serving", lambda: serves(serving), COLD)
    assert_reported(serving, volume, *KINDS[first][1:])
    with httpx.Client(base_url=serving.url, timeout=120) as client:
        assert serving.complete(client, [20] * 30, max_tokens=4).status_code == 200

    mount(volume, f"remount,{KINDS[then][0]}")
    before = serving.get()["status"]["targetRevision"]
    questions = known(serving, at_least=4)
    began = time.monotonic()
    with crowd(
        serving.url, questions, clients=2, at_most=5000, seconds=3 * COLD, rest=REST
    ) as clients:
        clients.goes_on()
        serving.apply(engine={**serving.object["spec"]["engine"], "chunkSize": 64})
        serving.until("serving the next revision", lambda: serves(serving), 2 * COLD)
        clients.goes_on()
    assert not clients.troubles
    status = serving.get()["status"]
    assert status["currentRevision"] == status["targetRevision"] != before
    path = f"/apis/apps/v1/namespaces/{own_namespace}/controllerrevisions"
    revisions = operator.read(path)["items"]
    assert len(revisions) == 2
    assert not any("pdserving.io/failed" in r["metadata"].get("annotations", {}) for r in revisions)
    assert_reported(serving, volume, *KINDS[then][1:])
    print(f"{then}: rolled out in {time.monotonic() - began:.0f} s, 0 failed, 0 rolled back")
