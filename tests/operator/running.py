"""`pds-operator run` as processes against a real API server, and a PDServing for it to serve."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from pds_cluster import testing

NOWHERE = {"spec": {"nodeSelector": {"pdserving.io/test": "no-such-node"}}}
CHAT = {
    "apiVersion": "pdserving.io/v1alpha1",
    "kind": "PDServing",
    "metadata": {"name": "chat"},
    "spec": {
        "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
        "prefill": {"replicas": 2, "podTemplate": NOWHERE},
        "decode": {"replicas": 2, "parallelism": {"pp": 2}, "podTemplate": NOWHERE},
        "router": {"replicas": 1, "podTemplate": NOWHERE},
    },
}
CHAT_PODS = 4
"""Of its engines, where no node is found: both prefill groups, and one of decode."""


Found = TypeVar("Found")


class OperatorProcess:
    """`pds-operator run` for one namespace."""

    def __init__(self, cluster: testing.Cluster, namespace: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "operator.log"
        self.config = folder / "settings.yaml"
        settings = {
            "namespaces": [namespace],
            "namespace": namespace,
            "livenessPort": self.port,
            "lease": {"seconds": 5},
            "probeSeconds": 0.3,  # tests wait for whole rounds, which come every tenth probe
        }
        self.config.write_text(yaml.safe_dump(settings))
        self.environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pds_operator", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        return self.process

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)

    def metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^(pds\S+) (\S+)$", text, re.MULTILINE)
        }

    def writes(self) -> float:
        return sum(value for name, value in self.metrics().items() if "writes_total" in name)


def eventually(check: Callable[[], Found], seconds: float = 60) -> Found:
    """The first true value of `check`; what it raises is shown when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            if found := check():
                return found
            last = found
        except (OSError, LookupError, HTTPException) as error:
            last = error
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {last!r}")
        time.sleep(0.2)


def condition(pds: dict[str, Any], kind: str) -> dict[str, Any]:
    [found] = [item for item in pds["status"]["conditions"] if item["type"] == kind]
    return found


def listed(cluster: testing.Cluster, namespace: str, kinds: str) -> list[str]:
    text = cluster.kubectl(
        "-n", namespace, "get", kinds, "-l", "pdserving.io/name=chat", "-o", "json"
    )
    return sorted(item["metadata"]["name"] for item in json.loads(text)["items"])


def hindered(read: Callable[[], dict[str, Any]]) -> str:
    """Wait until the status says of all pods of CHAT that no node takes them; what it says.

    Each is reported once it has waited for half a minute, and they were not made in one second:
    before the last is reported, a write is still to come.
    """

    def message() -> str | None:
        found = condition(read(), "Degraded")
        # One pod is named, the others, the router's among them, are counted.
        all_named = f"(and {CHAT_PODS} more pods)" in found["message"]
        return found["message"] if found["reason"] == "Unschedulable" and all_named else None

    return str(eventually(message, 90))
