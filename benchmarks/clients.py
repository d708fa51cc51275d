"""Tokens per second of the tiny model at 1, 16, 64 and 256 clients, beside a commit before.

    python benchmarks/clients.py [--quick] [--before COMMIT]

Two unified engines answer in turn: this tree's, and that of the commit before (a git worktree in a
temporary folder, with today's libraries). Each client streams answers of 64 tokens, one after the
other, over a connection of its own. `value` is this tree's tokens per second at 64 clients, `ratio`
over the commit before, both medians of several turns. `us_per_token` is the CPU time of each
process of the engine at 64 clients, over the tokens.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import ROOT, doing, say
from common.attacks import MODEL, C
from common.servers import Server
from pds_engine.keys import Keys

CLIENTS = (1, 16, 64, 256)
TOLD = 64
"""Clients at which `value` and `us_per_token` are taken."""
TOKENS = 64
BODY = json.dumps(
    {"prompt": "The value of", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
).encode()
ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()", "serve")
READY_SECONDS, TURN_SECONDS = 120.0, 300.0
TICKS = os.sysconf("SC_CLK_TCK")


async def client(url: str, answers: Iterator[int], most: int) -> None:
    """Streams answers until `most` have begun in all; raises SystemExit where one is not whole."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = (
        f"POST {C} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    try:
        while next(answers) < most:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"error: the engine answers {head[:200]!r}")
            await reader.readuntil(b"data: [DONE]\n\n")
            await reader.readuntil(b"0\r\n\r\n")
    finally:
        writer.close()


async def turn(url: str, clients: int, most: int) -> float:
    """Tokens per second."""
    answers, began = itertools.count(), time.monotonic()
    await asyncio.gather(*(client(url, answers, most) for _ in range(clients)))
    return most * TOKENS / (time.monotonic() - began)


def cpu_seconds(server: Server) -> dict[str, float]:
    """By process of the engine, since it started."""
    found: dict[str, float] = {}
    for child in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for pid in child.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = words[words.index("pds_engine.child") + 1] if "pds_engine.child" in words else ""
            if name:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[name] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def measure(server: Server, clients: int, rounds: int) -> tuple[float, dict[str, float]]:
    """(tokens per second, CPU microseconds a token by process)."""
    most = rounds * max(clients, 4)
    before = cpu_seconds(server)
    with doing(f"{server.name}: {clients} clients, {most} answers", TURN_SECONDS):
        speed = asyncio.run(turn(server.url, clients, most))
    after = cpu_seconds(server)
    tokens = most * TOKENS
    return speed, {name: (after[name] - before[name]) / tokens * 1e6 for name in after}


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


@contextmanager
def engines(commit: str) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        trees = {"before": stack.enter_context(checked_out(commit)), "now": ROOT}
        started = {}
        for name, tree in trees.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            Keys.make().write(folder)
            settings = (
                "role=unified", "pod.group=clients", f"http.keys_dir={folder}",
                "http.metrics_port=0", "http.control_port=0", "http.rendezvous_port=0",
                "kv.port_base=0", "scheduler.max_running=256",
            )  # fmt: skip
            words = (word for setting in settings for word in ("--set", setting))
            model = ("--model", str(MODEL), "--dtype", "float32")
            started[name] = Server(folder, name, *ENGINE, *model, *words, tree=tree)
            stack.callback(started[name].end)
        with doing("two engines start", READY_SECONDS):
            while not all(server.answers("/readyz") for server in started.values()):
                time.sleep(0.1)
        yield started


def report(commit: str, turns: int, rounds: int) -> dict[str, Any]:
    speeds: dict[str, dict[int, list[float]]] = {}
    costs: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with engines(commit) as started:
        for name, server in started.items():
            measure(server, 16, 1)  # warm
            speeds[name] = {clients: [] for clients in CLIENTS}
        for number in range(turns):
            for clients in CLIENTS:
                for name in sorted(started, reverse=bool(number % 2)):
                    speed, cost = measure(started[name], clients, rounds)
                    speeds[name][clients].append(speed)
                    if clients == TOLD:
                        costs[name].append(cost)
    median = {
        name: {clients: statistics.median(found) for clients, found in by.items()}
        for name, by in speeds.items()
    }
    now, before = median["now"], median["before"]
    return {
        "name": "clients",
        "value": round(now[TOLD]),
        "unit": "tokens/s",
        "better": "higher",
        "baseline": round(before[TOLD]),
        "ratio": round(now[TOLD] / before[TOLD], 3),
        "machine": f"{platform.machine()} {os.cpu_count()} cores",
        "before": commit,
        "tokens_per_s": {clients: round(speed) for clients, speed in now.items()},
        "ratios": {clients: round(now[clients] / before[clients], 3) for clients in CLIENTS},
        "us_per_token": {
            name: {
                process: round(statistics.median(cost[process] for cost in found), 1)
                for process in found[0]
            }
            for name, found in costs.items()
        },
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three turns of few answers")
    parser.add_argument("--before", default="HEAD~1", help="the commit to compare with")
    options = parser.parse_args()
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{options.before}^{{commit}}"]
    commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    say(f"beside {commit[:12]}")
    turns, rounds = (3, 1) if options.quick else (5, 4)
    print(json.dumps(report(commit, turns, rounds)))


if __name__ == "__main__":
    main()
