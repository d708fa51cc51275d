"""What it all takes: the operator's and the router's memory, the whole demonstration's, a start.

Figures are printed (`pytest -rP`); what is asserted is what would show a mistake, as torch in a
process that has no use for it, not a busy machine.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pds_cluster import cgroups, processes
from serving import MODEL, Serving

MB = 1 << 20
CONTROL_LIMIT = 150 * MB
DEMO_LIMIT = 8 << 30
START_LIMIT = 60
"""Seconds; the aim is 15 on a quiet machine."""


@pytest.fixture(scope="module")
def served(chat: Serving) -> Serving:
    """As many groups as the demonstration has."""
    chat.sized(prefill=2, decode=1)
    return chat


@pytest.mark.cluster
@pytest.mark.parametrize("what", ["operator", "router"])
def test_who_decides_is_small_and_without_torch(served: Serving, what: str) -> None:
    if what == "router":
        where, name = served.namespace, served.pods("router")[0]["metadata"]["name"]
    else:
        where, words = "pds-system", ("get", "pods", "-o", "json")
        pods = json.loads(served.cluster.kubectl("-n", where, *words))["items"]
        (name,) = (p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running")
    run = ("-n", where, "exec", name, "--", "sh", "-c")
    script = "cat /proc/[0-9]*/comm; grep -h VmRSS /proc/1/status; grep -c torch /proc/1/maps || :"
    *_, line, torch = served.cluster.kubectl(*run, script).splitlines()
    resident = int(line.split()[1]) * 1024
    print(f"{what}: {resident / MB:.0f} MB resident")
    assert torch == "0"
    assert resident <= CONTROL_LIMIT


@pytest.mark.cluster
def test_the_whole_demonstration_fits(served: Serving) -> None:
    """The proportional share of every process of the instance: Kubernetes' own and all pods'.

    A page that n processes share counts 1/n for each, so that the sum is what would be freed.
    Pods of other tests that run just now are counted too.
    """
    settings = served.cluster.settings
    pods, own = cgroups.members(settings), set(processes.strays(settings))
    own -= pods
    taken = {"pods": sum(map(share, pods)), "Kubernetes": sum(map(share, own))}
    for part, size in taken.items():
        print(f"{part}: {size / MB:.0f} MB")
    assert 0 < sum(taken.values()) <= DEMO_LIMIT


def share(pid: int) -> int:
    """Bytes of `pid`'s proportional set; none when it ends while we look."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def test_from_command_to_first_token(tmp_path: Path) -> None:
    port = 18431
    words = ("serve", "--model", str(MODEL), "--dtype", "float32", "--port", str(port))
    more = ("--set", "http.metrics_port=0", "--set", "http.control_port=0")
    begun = time.monotonic()
    with engine(*words, *more, log=tmp_path / "log") as child, httpx.Client() as client:
        url = f"http://127.0.0.1:{port}"
        while not ready(client, url):
            waited = time.monotonic() - begun
            log = (tmp_path / "log").read_text()
            assert child.poll() is None and waited < START_LIMIT, log
            select.select([], [], [], 0.05)
        body = {"model": "tiny", "prompt": "The value of", "max_tokens": 4, "stream": True}
        with client.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
            first = next(line for line in answer.iter_lines() if line.startswith("data: "))
        seconds = time.monotonic() - begun
    print(f"first token {seconds:.1f} s after the command")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"]
    assert seconds < START_LIMIT


def ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def engine(*words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = Path(sys.executable).with_name("pds-engine")
    with log.open("wb") as out:
        child = subprocess.Popen(
            [program, *words], stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)
