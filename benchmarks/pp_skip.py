"""What the output skip saves: the time to the first token of a long prompt on two stages.

    python benchmarks/pp_skip.py [--quick] [--model DIR]

Groups of real processes on gloo, started by `pds-engine serve --pp N`: two stages with the skip,
two without it (every step then sends an output, and waits for the one before it), and one process
that holds all layers. Requests take turns among the groups in one run. `value`: ms to the first
token, p50, with the skip; `baseline`: without. `outputs`: messages from the last stage to the first
for one such prompt, counted at both ends. `throughput`: output tokens a second of many short
requests at once, at pp 2 and beside it at pp 1; on two cores it is information.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from common import ROOT, doing, say

ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()")
CHUNK = 128
START_SECONDS = 120.0
KINDS = {
    "skip": ("--pp", "2"),
    "no_skip": ("--pp", "2", "--set", "pipeline.skip_output=false"),
    "pp1": (),
}


class Group:
    """One group's HTTP server."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=300)

    def ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def outputs(self) -> tuple[int, int]:
        """Outputs sent by the last stage and received by the first, once all ranks report."""
        while True:
            state = self.client.get("/pds/state").json()
            traffic = state["traffic"]
            reported = all(each["steps"] == state["steps_done"] for each in traffic)
            if reported and not state["in_flight"]:
                return traffic[-1]["outputs_sent"], traffic[0]["outputs_received"]
            time.sleep(0.05)

    def complete(self, prompt: list[int], tokens: int, **more: Any) -> httpx.Response:
        body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = self.client.post("/v1/completions", json={**body, "ignore_eos": True, **more})
        answer.raise_for_status()
        return answer

    def first_token_ms(self, prompt: list[int], tokens: int) -> float:
        """Until the first event of a stream."""
        body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "stream": True}
        begun = time.perf_counter()
        with self.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            taken = time.perf_counter() - begun
            for _ in lines:
                continue
        return taken * 1e3


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Group]:
    """A group on free ports of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "http.metrics_port": 0,
        "http.control_port": 0,
        "http.rendezvous_port": 0,
        "kv.port_base": 0,
        "kv.backends": "[tcp]",
        "scheduler.chunk_size": CHUNK,
        "scheduler.prefix_cache": "false",
        "log_level": "error",
    }
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [*ENGINE, "serve", "--model", str(model), "--name", "bench", "--dtype", "float32"]
    process = subprocess.Popen([*command, "--port", str(port), *flags, *options])
    group = Group(f"http://127.0.0.1:{port}")
    try:
        say(f"waiting for a group to start (at most {START_SECONDS:g} s)")
        deadline = time.monotonic() + START_SECONDS
        while not group.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a group did not start: {' '.join(options)}")
            time.sleep(0.1)
        yield group
    finally:
        group.client.close()
        process.kill()
        process.wait()


def throughput(group: Group, requests: int, tokens: int) -> float:
    """Output tokens a second of `requests` at once."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        prompts = [[n + 5] * 64 for n in range(requests)]
        list(pool.map(lambda prompt: group.complete(prompt, tokens), prompts))
    return requests * tokens / (time.perf_counter() - begun)


def measure(model: Path, quick: bool) -> dict[str, Any]:
    length, rounds = (1024, 3) if quick else (4000, 9)
    requests, tokens = (8, 16) if quick else (16, 64)
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    rates: dict[str, list[float]] = {name: [] for name in KINDS}
    outputs = {}
    with ExitStack() as stack:
        groups = {
            name: stack.enter_context(serving(model, *options)) for name, options in KINDS.items()
        }
        for number in range(rounds + 1):
            for name, group in groups.items():
                prompt = [5 + (number + place) % 200 for place in range(length)]
                times[name].append(group.first_token_ms(prompt, 2))
        for name in ("skip", "no_skip"):
            before = groups[name].outputs()
            groups[name].complete([7] * length, 2)
            after = groups[name].outputs()
            outputs[name] = [after[0] - before[0], after[1] - before[1]]
        for _ in range(2 if quick else 3):
            for name, group in groups.items():
                rates[name].append(throughput(group, requests, tokens))
    p50 = {name: statistics.median(each[1:]) for name, each in times.items()}
    return {
        "name": "pp_skip",
        "value": round(p50["skip"], 1),
        "unit": "ms",
        "better": "lower",
        "baseline": round(p50["no_skip"], 1),
        "ratio": round(p50["no_skip"] / p50["skip"], 2),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "prompt": length,
        "chunks": -(-length // CHUNK),
        "outputs": outputs,
        "first_token_ms": {
            name: {"p50": round(p50[name], 1), "min": round(min(each[1:]), 1)}
            for name, each in times.items()
        },
        "throughput": {
            "pp2": round(statistics.median(rates["skip"]), 1),
            "pp2_no_skip": round(statistics.median(rates["no_skip"]), 1),
            "pp1": round(statistics.median(rates["pp1"]), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "tiny")
    options = parser.parse_args()
    with doing("long prompts on two groups of two stages", 300 if options.quick else 3600):
        found = measure(options.model, options.quick)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
