"""How the operator does with a thousand pods on a hundred nodes.

    make cluster-up; python benchmarks/scale.py [--quick] [--pods 1000] [--nodes 100] [--objects 10]

On a cluster without another operator (that of `make demo` is one): the run ends where it finds one.

The local cluster's API server, controllers and scheduler, the operator as a process of its own, and
nodes whose kubelet is KWOK's: it says of each pod that it runs and is ready. Nothing answers at the
pods' addresses (on loopback), so that every look at an engine is one that fails. A watch beside the
operator's sees what becomes of the pods.

`value`: s from `kubectl apply` of the PDServings until the API server has all pods; `bound_s`
and `ready_s` until all are on a node, and Ready. `plain`: the same of as many such pods that a bare
client posts: what the machine's control plane can do. `lag_ms`: from before a patch of a pod until
it is in the operator's store, ten times a second meanwhile. `rest`: what the operator does in ten
seconds in which nothing happens; each PDServing is looked at by then, and nothing is written.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, doing, say
from common.clusters import KWOK_NODE, alone, find, kwok
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from pds_cluster import testing
from pds_cluster.shell import wait_for
from pds_operator import cli, names
from pds_operator.run.api import Api
from pds_operator.run.cluster import Store

STAMP = "pdserving.io/benchmark-stamp"
WITHIN = 180.0
"""Seconds until pods that get nowhere are given up."""
BOUND = 1200.0
"""Seconds that a whole run may take."""

Object = dict[str, Any]


# ---- the operator, with a look at what it sees and asks for --------------------------------------


def serve(config: str, report: Path) -> None:
    """`pds-operator run`, which at its end writes down its lags and its API calls."""
    lags: list[float] = []
    seen: set[str] = set()
    calls: dict[str, int] = {}
    put, request = Store.put, Api._request

    def stamped(self: Store, obj: Object) -> None:
        put(self, obj)
        stamp = (obj["metadata"].get("annotations") or {}).get(STAMP)
        if stamp is not None and stamp not in seen:
            seen.add(stamp)
            lags.append(time.time() - float(stamp))

    async def counted(self: Api, method: str, path: str, *more: Any, **options: Any) -> Any:
        what = "WATCH" if "watch" in (options.get("params") or {}) else method
        calls[what] = calls.get(what, 0) + 1
        return await request(self, method, path, *more, **options)

    setattr(Store, "put", stamped)  # noqa: B010
    setattr(Api, "_request", counted)  # noqa: B010
    sys.argv = ["pds-operator", "run", "--config", config, "--log-level", "warning"]
    try:
        cli.main()
    finally:
        report.write_text(json.dumps({"lags": lags, "calls": calls}))


@dataclass
class Operator:
    """The operator's process, and what it has used."""

    process: subprocess.Popen[bytes]
    port: int
    report: Path

    def used(self) -> tuple[float, float]:
        """Seconds of CPU, and MB that were resident at most."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        ticks = os.sysconf("SC_CLK_TCK")
        return (int(stat[11]) + int(stat[12])) / ticks, int(peak.split()[1]) / 1000

    def metrics(self) -> str:
        """Its metrics; nothing while it does not answer."""
        words = ["curl", "-s", f"http://127.0.0.1:{self.port}/metrics"]
        return subprocess.run(words, check=False, capture_output=True, text=True).stdout

    def stop(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        report: dict[str, Any] = json.loads(self.report.read_text())
        return report


@contextmanager
def operator(cluster: testing.Cluster, namespace: str, folder: Path) -> Iterator[Operator]:
    config, report = folder / "settings.yaml", folder / "report.json"
    settings = {"namespaces": [namespace], "namespace": namespace, "livenessPort": 18081}
    config.write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    words = [sys.executable, __file__, "--serve", str(config), str(report)]
    with subprocess.Popen(words, env=environment) as process:
        try:
            running = Operator(process, 18081, report)
            say("waiting for the operator to lead (at most 60 s)")
            wait_for(
                "the operator to lead", lambda: "pds_operator_leads 1" in running.metrics(), 60
            )
            yield running
        finally:
            if process.poll() is None:
                process.kill()


# ---- what becomes of the pods --------------------------------------------------------------------


@dataclass
class Seen:
    """When each engine pod was first seen so, by the clock of `time.monotonic`."""

    created: dict[str, float] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)

    def take(self, pod: Object) -> None:
        meta, now = pod["metadata"], time.monotonic()
        if meta["labels"].get(names.ROLE) not in ("prefill", "decode"):
            return
        name = meta["name"]
        self.created.setdefault(name, now)
        if pod["spec"].get("nodeName"):
            self.bound.setdefault(name, now)
        conditions = pod["status"].get("conditions") or []
        if any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
            self.ready.setdefault(name, now)


async def watch(api: Api, namespace: str, seen: Seen) -> None:
    _, version = await api.list("Pod", namespace, names.NAME)
    while True:
        async for event in api.watch("Pod", namespace, version, names.NAME):
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] in ("ADDED", "MODIFIED"):
                seen.take(event["object"])


async def stamp(api: Api, namespace: str, seen: Seen) -> None:
    """Patch some pod ten times a second."""
    while True:
        await asyncio.sleep(0.1)
        if seen.created:
            name = next(iter(seen.created))
            patch = {"metadata": {"annotations": {STAMP: repr(time.time())}}}
            await api.merge("Pod", namespace, name, patch)


async def until(what: str, seen: dict[str, float], count: int, begun: float) -> float:
    """Seconds from `begun` until so many were seen to be `what`."""
    say(f"waiting for {count} pods to be {what} (at most {WITHIN:g} s)")
    deadline = begun + WITHIN
    while len(seen) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {len(seen)} of {count} pods are {what} after {WITHIN:g} s")
        await asyncio.sleep(0.05)
    return round(sorted(seen.values())[count - 1] - begun, 2)


def bare(pod: Object, name: str, namespace: str) -> Object:
    """A pod such as `pod`, which nobody owns."""
    spec = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
    spec |= {"hostname": name, "serviceAccountName": "default", "serviceAccount": "default"}
    metadata = {"name": name, "namespace": namespace, "labels": pod["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def plainly(
    cluster: testing.Cluster, pod: Object, namespace: str, count: int
) -> dict[str, float]:
    """Post `count` pods, 50 at a time."""
    async with await connect(cluster) as api:
        seen = Seen()
        watching = asyncio.create_task(watch(api, namespace, seen))
        pods = iter([bare(pod, f"plain-{number}", namespace) for number in range(count)])

        async def post() -> None:
            for each in pods:
                await api.create(each)

        begun = time.monotonic()
        await asyncio.gather(*(post() for _ in range(50)))
        result = {
            "created_s": await until("created", seen.created, count, begun),
            "bound_s": await until("on a node", seen.bound, count, begun),
            "ready_s": await until("Ready", seen.ready, count, begun),
        }
        watching.cancel()
    return result


async def connect(cluster: testing.Cluster) -> Api:
    configuration = Configuration()
    await load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    return Api(configuration)


def serving(number: int, pods: int) -> Object:
    somewhere = {"spec": {"nodeSelector": KWOK_NODE}}
    prefill = pods * 3 // 5
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": f"chat-{number}"},
        "spec": {
            "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
            "prefill": {"replicas": prefill, "podTemplate": somewhere},
            "decode": {"replicas": pods - prefill, "podTemplate": somewhere},
            "router": {"replicas": 1, "podTemplate": somewhere},
        },
    }


def metrics(running: Operator) -> tuple[float, float]:
    """(rounds, writes) so far."""
    metrics = running.metrics()
    if not metrics:
        raise RuntimeError("the operator does not answer: what it does at rest is not known")
    lines = [line.split(" ") for line in metrics.splitlines() if not line.startswith("#")]
    rounds = sum(float(value) for name, value in lines if name == "pds_operator_rounds_total")
    return rounds, sum(float(value) for name, value in lines if "writes_total" in name)


async def rest(running: Operator) -> dict[str, float]:
    """What it does once nothing happens any more."""
    say("looking at what the operator does at rest, for ten seconds in which nothing is written")
    rounds, writes = metrics(running)
    quiet = time.monotonic()
    while time.monotonic() < quiet + 10:
        await asyncio.sleep(0.5)
        now_rounds, now_writes = metrics(running)
        if now_writes != writes:  # the last of the burst
            quiet, rounds, writes, used = time.monotonic(), now_rounds, now_writes, running.used()
        if time.monotonic() - quiet < 1:
            used = running.used()
    now_rounds, now_writes = metrics(running)
    return {
        "rounds": now_rounds - rounds,
        "writes": now_writes - writes,
        "cpu_s": round(running.used()[0] - used[0], 2),
    }


async def measure(
    asked: argparse.Namespace, cluster: testing.Cluster, running: Operator, namespace: str
) -> dict[str, Any]:
    async with await connect(cluster) as api:
        seen = Seen()
        tasks = [
            asyncio.create_task(watch(api, namespace, seen)),
            asyncio.create_task(stamp(api, namespace, seen)),
        ]
        before = running.used()[0]
        each = asked.pods // asked.objects
        begun = time.monotonic()
        objects = [serving(number, each) for number in range(asked.objects)]
        await asyncio.to_thread(cluster.apply, *objects, namespace=namespace)
        count = each * asked.objects
        result = {
            "value": await until("created", seen.created, count, begun),
            "bound_s": await until("on a node", seen.bound, count, begun),
            "ready_s": await until("Ready", seen.ready, count, begun),
        }
        used, peak = running.used()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        quiet = await rest(running)
    return result | {"cpu_s": round(used - before, 2), "peak_mb": round(peak, 1), "rest": quiet}


def swept(cluster: testing.Cluster, namespace: str) -> None:
    """Without what makes pods, and then without pods: at once, as no kubelet runs them."""
    cluster.kubectl("-n", namespace, "delete", "pds", "--all", "--cascade=orphan")
    cluster.kubectl("-n", namespace, "delete", "deployments", "--all", "--cascade=orphan")
    for kind in ("/apis/apps/v1", "replicasets"), ("/api/v1", "pods"):
        path = f"{kind[0]}/namespaces/{namespace}/{kind[1]}?gracePeriodSeconds=0"
        cluster.kubectl("delete", "--raw", path)


def run(
    asked: argparse.Namespace, cluster: testing.Cluster
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures, and what the operator reported at its end."""
    definitions = str(ROOT / "crds" / "pdservings.yaml")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", definitions)
    with tempfile.TemporaryDirectory() as text, cluster.namespace() as namespace:
        folder = Path(text)
        with kwok(cluster, asked.nodes, folder):
            try:
                with operator(cluster, namespace, folder) as running:
                    result = asyncio.run(measure(asked, cluster, running, namespace))
                    report = running.stop()
                pod = cluster.get("pod", "chat-0-p-0-0-0", namespace)
                swept(cluster, namespace)
                result["plain"] = asyncio.run(plainly(cluster, pod, namespace, asked.pods))
            finally:
                swept(cluster, namespace)
    return result, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="100 pods on 10 nodes")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--objects", type=int, default=10, help="PDServings that share the pods")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve[0], Path(asked.serve[1]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with all that the end of a run does
    if asked.quick:
        asked.pods, asked.nodes = 100, 10
    cluster = find()
    alone(cluster)
    with doing(f"{asked.pods} pods on {asked.nodes} nodes", BOUND):
        result, report = run(asked, cluster)
    lags = sorted(report["lags"])
    line = {
        "name": "scale",
        "unit": "s until all pods are created",
        "better": "lower",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **result,
        "lag_ms": {
            "p50": round(1000 * statistics.median(lags), 1),
            "p99": round(1000 * lags[int(0.99 * len(lags))], 1),
            "count": len(lags),
        },
        "api_calls": report["calls"],
        "pods": asked.pods,
        "nodes": asked.nodes,
        "objects": asked.objects,
    }
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
