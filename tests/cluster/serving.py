"""A PDServing under test: apply it, wait for it, talk to it, look into its pods."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pds_cluster.testing import Cluster
from pds_operator.kubectl.commands import app as kubectl_pds
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "tiny"
COLD = 600
"""Seconds: seven libraries by g++, on two cores that other work shares."""
Object = dict[str, Any]
Found = TypeVar("Found")


def manifest(name: str, **spec: Any) -> Object:
    """A PDServing of the tiny model, small enough for two cores; `spec` overlays by key."""
    base: Object = {
        "model": {"name": "tiny", "source": {"path": "/models/tiny"}, "dtype": "float32"},
        "engine": {"maxModelLen": 2048, "chunkSize": 128, "kvMemoryBytes": 64 << 20},
        "prefill": {"replicas": 1, "resources": {"requests": {"cpu": "100m"}}},
        "decode": {"replicas": 1, "resources": {"requests": {"cpu": "100m"}}},
        "router": {"replicas": 1, "resources": {"requests": {"cpu": "50m"}}},
        "rollout": {"drainSeconds": 30},
    }
    return {
        "apiVersion": "pdserving.io/v1alpha1",
        "kind": "PDServing",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def is_settled(found: Object) -> bool:
    """Ready, not Progressing and not Degraded, for its newest spec."""
    status = found.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return (
        status.get("observedGeneration") == found["metadata"]["generation"]
        and conditions.get("Ready") == "True"
        and conditions.get("Progressing") == "False"
        and conditions.get("Degraded") == "False"
    )


def proof(pod: Object) -> Object:
    """What the warm-up of `pod` wrote to its termination message."""
    (warmup,) = pod["status"]["initContainerStatuses"]
    found: Object = json.loads(warmup["state"]["terminated"]["message"])
    return found


def serving_uids(serving: "Serving") -> set[str]:
    """Of the pods of both roles: one that is made again is another."""
    pods = [pod for role in ("prefill", "decode") for pod in serving.pods(role)]
    return {str(pod["metadata"]["uid"]) for pod in pods}


@dataclass
class Serving:
    """One PDServing in one namespace."""

    cluster: Cluster
    namespace: str
    object: Object

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    def apply(self, **spec: Any) -> None:
        """`kubectl apply`, after overlaying `spec`."""
        self.object = {**self.object, "spec": {**self.object["spec"], **spec}}
        self.cluster.apply(self.object, namespace=self.namespace)

    def get(self) -> Object:
        return self.cluster.read(self._path)

    def row(self) -> list[str]:
        """As `kubectl get pds` prints it: NAME MODEL PREFILL DECODE READY ROLLOUT …"""
        table = self.cluster.read(self._path, "application/json;as=Table;g=meta.k8s.io;v=v1")
        columns = zip(table["columnDefinitions"], table["rows"][0]["cells"], strict=True)
        # The others are for -o wide.
        return [str(cell) for column, cell in columns if not column["priority"]]

    @property
    def _path(self) -> str:
        spaces = "/apis/pdserving.io/v1alpha1/namespaces"
        return f"{spaces}/{self.namespace}/pdservings/{self.name}"

    def conditions(self) -> dict[str, Object]:
        return {c["type"]: c for c in self.get().get("status", {}).get("conditions", [])}

    def sized(self, **replicas: int) -> None:
        """So many groups of the roles, which serve when this returns."""
        spec = self.object["spec"]
        self.apply(**{role: {**spec[role], "replicas": n} for role, n in replicas.items()})
        self.settled()

    def settled(self, timeout: float = 240) -> None:
        """Wait until it is Ready, not Progressing and not Degraded, for the spec just applied."""
        self.until("Ready and at rest", self._is_settled, timeout)

    def until(self, what: str, probe: Callable[[], Found], timeout: float) -> Found:
        """The first true answer of `probe`; AssertionError with the conditions after `timeout`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if found := probe():
                return found
            time.sleep(0.3)
        raise AssertionError(f"not {what} within {timeout} s: {json.dumps(self.conditions())}")

    def _is_settled(self) -> bool:
        return is_settled(self.get())

    @property
    def url(self) -> str:
        """The endpoint, by its Service address: routed from this machine on the local cluster."""
        path = f"/api/v1/namespaces/{self.namespace}/services/{self.name}"
        service = self.cluster.read(path)["spec"]
        return f"http://{service['clusterIP']}:{service['ports'][0]['port']}"

    def pods(self, role: str) -> list[Object]:
        """The pods of a role, those being deleted too."""
        selector = quote(f"pdserving.io/name={self.name},pdserving.io/role={role}")
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}"
        items: list[Object] = self.cluster.read(path)["items"]
        return items

    def state(self, pod: Object) -> Object:
        """`/pds/state` of an engine's leader. Raises OSError where it is silent."""
        url = f"http://{pod['status']['podIP']}:8000/pds/state"
        with urllib.request.urlopen(url, timeout=10) as answer:
            state: Object = json.load(answer)
            return state

    def states(self, role: str) -> list[Object]:
        """Of the leaders that have an address."""
        return [
            self.state(pod)
            for pod in self.pods(role)
            if "podIP" in pod.get("status", {})
            and pod["metadata"]["labels"].get("pdserving.io/rank-pod") == "0"
        ]

    def complete(
        self, client: httpx.Client, prompt: str | list[int], **options: Any
    ) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "temperature": 0, **options}
        return client.post(f"{self.url}/v1/completions", json=body, timeout=120)

    def pds(self, command: str, *words: str) -> str:
        """What `kubectl pds COMMAND NAME` prints."""
        here = self.cluster
        path = f"{Path(here.program).parent}:/usr/bin:/bin"
        env = {"KUBECONFIG": str(here.kubeconfig), "PATH": path}
        place = ["-n", self.namespace, "--context", here.context]
        done = CliRunner().invoke(kubectl_pds, [command, self.name, *words, *place], env=env)
        assert done.exit_code == 0, done.output
        return done.output

    def exec(self, pod: Object, *words: str) -> str:
        name = pod["metadata"]["name"]
        return self.cluster.kubectl(
            "-n", self.namespace, "exec", name, "-c", "engine", "--", *words
        )


@contextmanager
def served(cluster: Cluster, namespace: str, name: str, **spec: Any) -> Iterator[Serving]:
    """It serves within the block, and is gone after it."""
    serving = Serving(cluster, namespace, manifest(name, **spec))
    began = time.monotonic()
    serving.apply()
    serving.settled(COLD)
    print(f"{name} serves {time.monotonic() - began:.0f} s after it was asked for")
    yield serving
    cluster.kubectl("-n", namespace, "delete", "pds", name, "--timeout=60s")
