"""What clients notice of a rollout: ours, and beside it the same change in the way of Deployments.

    python benchmarks/rollout.py [--quick]

Needs the local cluster (`make cluster-up`). Eight clients stream answers that are known while a
PDServing gets another image tag, chunk size and dtype at once, so that KV of old and new groups
does not fit. Then the change is gone back, with the operator asleep, as two plain Deployments and
a plain router would go:

- prefill and decode are rolled each on its own: a new pod is made (maxSurge 1), and as soon as it
  is ready an old one is deleted, with a fixed grace of `GRACE` seconds. That is what a
  `preStop: sleep` gives to its requests, however long they take.
- The router takes prefill and decode groups by turns, whatever their KV format, tries no other
  pair and moves no stream: as the proxies in vLLM's examples of disaggregated prefill.

It is the kinder comparison in two ways: all kernels are compiled by then, and engines use their
grace to finish what runs (vLLM's end it). A client whose request fails waits a second.

`value` is our failed requests, `ratio` our p99 of the time to the first token during the rollout
over before it. --quick: one group of each role, and no warm-up.
"""

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from common import doing, say
from common.clusters import find
from pds_cluster import image, testing
from pds_cluster.settings import DEV_IMAGE
from serving import Object, Serving, manifest
from streams import Crowd, LoadPhase, Question, StreamOutcome, copies, crowd, known, ttft
from watching import DEBUG, ROLES, Watch, watching

CLIENTS = 8
GRACE = 5
"""Seconds, as `preStop: sleep` mostly has."""
SETTLED = 600.0
NEXT = "localhost/pds-dev:next"
WARMUP = {
    "volume": {"claim": {"size": "1Gi"}},
    "warmup": {"enabled": True, "workers": 2, "timeoutSeconds": 600},
}
OPERATOR = ("-n", "pds-system", "scale", "deployment", "pdserving")


def spec(quick: bool) -> Object:
    role = {"resources": {"requests": {"cpu": "100m"}}}
    return {
        "prefill": {**role, "replicas": 1 if quick else 2},
        "decode": {**role, "replicas": 1 if quick else 2},
        "router": {"replicas": 1, "podTemplate": DEBUG, "resources": {"requests": {"cpu": "50m"}}},
        "rollout": {"maxSurge": 1, "maxUnavailable": 0, "drainSeconds": 60},
        **({} if quick else {"compileCache": WARMUP}),
    }


def changed(old: Object) -> Object:
    """The keys of `spec` that the rollout changes."""
    return {
        "image": NEXT,
        "engine": {**old["engine"], "chunkSize": 64},
        "model": {**old["model"], "dtype": "bfloat16"},
    }


def before(clients: Crowd, quick: bool) -> LoadPhase:
    """Nothing happens but requests."""
    began, wanted = time.monotonic(), len(clients.outcomes) + (10 if quick else 40) * CLIENTS
    say(f"waiting for {wanted} answers before anything changes")
    while len(clients.outcomes) < wanted:
        clients.stop.wait(0.1)
    return LoadPhase("before", began, time.monotonic())


def ours(watch: Watch, clients: Crowd) -> LoadPhase:
    """The operator's rollout, to its end."""
    say(f"waiting for the operator's rollout (at most {SETTLED:g} s)")
    began = time.monotonic()
    watch.serving.apply(**changed(watch.serving.object["spec"]))
    watch.settled(SETTLED)
    ended = time.monotonic()
    clients.goes_on()
    return LoadPhase("the operator's rollout", began, ended)


# ---- in the way of Deployments -------------------------------------------------------------------


def theirs(serving: Serving, first: list[Object], clients: Crowd) -> LoadPhase:
    """Back to pods like `first`, each role on its own."""
    say("waiting for the same as Deployments (at most 600 s a pod)")
    began = time.monotonic()
    with ThreadPoolExecutor(len(ROLES)) as pool:
        for done in [pool.submit(roll, serving, role, first) for role in ROLES]:
            done.result()
    ended = time.monotonic()
    clients.goes_on()
    return LoadPhase("Deployments", began, ended)


def roll(serving: Serving, role: str, first: list[Object]) -> None:
    """One pod in, one pod out, until all of a role are replaced."""
    here = ("-n", serving.namespace)
    wanted = [pod for pod in first if pod["metadata"]["labels"]["pdserving.io/role"] == role]
    there = [pod for pod in serving.pods(role) if "deletionTimestamp" not in pod["metadata"]]
    for old, made in zip(there, map(plain, wanted), strict=True):
        serving.cluster.apply(made, namespace=serving.namespace)
        new = f"pod/{made['metadata']['name']}"
        serving.cluster.kubectl(
            *here, "wait", "--for=condition=Ready", new, "--timeout=600s", timeout=610
        )
        name = old["metadata"]["name"]
        serving.cluster.kubectl(*here, "delete", "pod", name, f"--grace-period={GRACE}")


def plain(pod: Object) -> Object:
    """A pod like it, of nobody's, and ready when its containers are."""
    name = pod["metadata"]["name"].rpartition("-")[0]  # the group's
    role_and_index = name.rpartition("-")[0]
    text = json.dumps({"metadata": pod["metadata"], "spec": pod["spec"]})
    made: Object = json.loads(text.replace(name, f"{role_and_index}-9"))
    meta, inner = made["metadata"], made["spec"]
    labels = {**meta["labels"], "pdserving.io/attempt": "9"}
    made["metadata"] = {"name": meta["name"], "labels": labels}
    for key in ("readinessGates", "nodeName"):
        inner.pop(key, None)
    return {"apiVersion": "v1", "kind": "Pod", **made}


@contextmanager
def plain_router(serving: Serving, watch: Watch) -> Iterator[str]:
    """Ours on this machine, with a plain choice; its log goes to the watch. Yields its URL."""
    secret = serving.cluster.get("secret", f"{serving.name}-control", serving.namespace)["data"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, value in secret.items():
            (folder / key).write_bytes(base64.b64decode(value))
        config = {
            "pdserving": serving.name,
            "namespace": serving.namespace,
            "model": "tiny",
            "port": 18000,
            "metrics_port": None,
            "keys_dir": name,
            "kubernetes": {
                "kubeconfig": str(serving.cluster.kubeconfig),
                "context": serving.cluster.context,
            },
            "attempts": 1,
            "migrations": 0,
            "log_level": "debug",
        }
        (folder / "router.json").write_text(json.dumps(config))
        command = [sys.executable, os.path.abspath(__file__), "--plain-router"]
        with (folder / "log").open("w+") as log:
            child = subprocess.Popen([*command, str(folder / "router.json")], stderr=log)
            url = f"http://127.0.0.1:{config['port']}"
            try:
                serving.until("a plain router", lambda: child.poll() is None and pairs(url), 60)
                yield url
            finally:
                child.terminate()
                child.wait(timeout=90)
                log.seek(0)
                watch.logs.extend(log)


def pairs(url: str) -> bool:
    """The router knows engines by now."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/pds/backends") as answer:
        return any(each["routable"] for each in json.load(answer)["backends"])
    return False


def serve_plainly(config: Path) -> None:
    """The process of the plain router."""
    import asyncio

    from pds_engine import log
    from pds_engine.router import backends
    from pds_engine.router.config import load as read
    from pds_engine.router.policy import Ask, Candidate, Pick
    from pds_engine.router.serve import serve

    def by_turns(candidates: list[Candidate], ask: Ask) -> Pick | None:
        prefill, decode = (
            sorted(each.key for each in candidates if each.role == role) for role in ROLES
        )
        if not prefill or not decode:
            return None
        return Pick(prefill[ask.turn % len(prefill)], decode[ask.turn % len(decode)])

    backends.pick = by_turns
    settings = read(config)
    log.configure(settings.log_level)
    asyncio.run(serve(settings))


# ---- the report ----------------------------------------------------------------------------------


def questions(serving: Serving) -> list[Question]:
    """Short answers from long contexts, and long ones, by turns."""
    short, long = known(serving, at_least=12), copies(serving, at_least=12, words=120)
    return [each for both in zip(short, long, strict=True) for each in both]


def report(phases: list[LoadPhase], outcomes: list[StreamOutcome]) -> None:
    for phase in phases:
        print(phase.summary(outcomes), file=sys.stderr)
    for why, count in Counter(each.trouble[:150] for each in outcomes if each.trouble).most_common(
        6
    ):
        print(f"  {count} x {why}", file=sys.stderr)


def failed(outcomes: list[StreamOutcome]) -> int:
    return sum(bool(each.error) for each in outcomes)


def wrong(outcomes: list[StreamOutcome]) -> int:
    return sum(bool(each.trouble) and not each.error for each in outcomes)


def figures(phases: list[LoadPhase], outcomes: list[StreamOutcome], prefix: str = "") -> Object:
    quiet, during = (phase.of(outcomes) for phase in phases)
    return {
        f"{prefix}failed": failed(outcomes),
        f"{prefix}wrong": wrong(outcomes),
        f"{prefix}requests": len(outcomes),
        f"{prefix}seconds": round(phases[1].ended - phases[1].began, 1),
        f"{prefix}ttft_p50": [round(ttft(each, 50), 3) for each in (quiet, during)],
        f"{prefix}ttft_p99": [round(ttft(each, 99), 3) for each in (quiet, during)],
        f"{prefix}ttft_ratio": round(ttft(during, 99) / ttft(quiet, 99), 2),
    }


def measure(cluster: testing.Cluster, namespace: str, quick: bool) -> Object:
    serving = Serving(cluster, namespace, manifest("rolled", **spec(quick)))
    serving.apply()
    serving.settled(SETTLED)
    asked = questions(serving)
    first = [pod for role in ROLES for pod in serving.pods(role)]
    load = {"clients": CLIENTS, "at_most": 10000, "seconds": 3 * SETTLED, "pause": 1.0}
    with watching(serving) as watch, crowd(serving.url, asked, **load) as clients:
        phases = [before(clients, quick), ours(watch, clients)]
    report(phases, clients.outcomes)
    result = figures(phases, clients.outcomes)
    result |= {"cold": len(watch.early()) + (0 if quick else len(watch.unproven()))}
    result |= {"mixed_pairs": len(watch.mixed())}
    cluster.kubectl(*OPERATOR, "--replicas=0")
    with (
        watching(serving) as watch,
        plain_router(serving, watch) as url,
        crowd(url, asked, **load) as clients,
    ):
        phases = [before(clients, quick), theirs(serving, first, clients)]
    report(phases, clients.outcomes)
    result |= figures(phases, clients.outcomes, "baseline_")
    return result | {"baseline_mixed_pairs": len(watch.mixed())}


def run(cluster: testing.Cluster, quick: bool) -> Object:
    with doing("installing the chart", 240):
        testing.install(cluster)
    image.tag(cluster.settings, DEV_IMAGE, NEXT)
    try:
        with cluster.namespace() as namespace:
            cluster.wait("sa/default", "jsonpath={.metadata.name}=default", namespace)
            return measure(cluster, namespace, quick)
    finally:
        cluster.kubectl(*OPERATOR, "--replicas=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer groups, no warm-up")
    parser.add_argument("--plain-router", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_router:
        serve_plainly(options.plain_router)
        return
    cluster = find()
    with doing("a rollout, and the same as Deployments", 1800 if options.quick else 7200):
        result = run(cluster, options.quick)
    print(
        json.dumps(
            {
                "name": "rollout",
                "value": result["failed"],
                "unit": "failed requests",
                "better": "lower",
                "baseline": result["baseline_failed"],
                "ratio": result["ttft_ratio"],
                "machine": f"{platform.machine()} {os.cpu_count()} cores",
                **result,
            }
        )
    )


if __name__ == "__main__":
    main()
