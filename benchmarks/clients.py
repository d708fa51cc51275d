"""Tokens per second of the tiny model at 1, 16, 64 and 256 clients, beside a commit before.

    python benchmarks/clients.py [--quick] [--compiled] [--before COMMIT] [--flames SVG]

Two unified engines answer in turn: this tree's, and that of the commit before (a git worktree in a
temporary folder, with today's libraries). Each client streams answers of 64 tokens, one after the
other, over a connection of its own. `value` is this tree's tokens per second at 64 clients, `ratio`
over the commit before, both medians of several turns. `us_per_token` is the CPU time of each
process of the engine over the tokens, by clients, the least of the turns; `client` is this
process's own, which shares the cores. `falls` is the largest fall from one number of clients to the
next.

With --compiled both run what a warm-up would have compiled, which they compile first.
With --flames, py-spy watches this tree's processes at 64 clients, and a flame graph is drawn.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop
from common import ROOT, doing, say
from common.attacks import MODEL, C
from common.flames import Panel, drawn, watched
from common.servers import Server
from pds_engine.keys import Keys

CLIENTS = (1, 16, 64, 256)
TOLD = 64
"""Clients at which `value` is taken."""
TOKENS = 64
BODY = json.dumps(
    {"prompt": "The value of", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
).encode()
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
"""How a whole stream ends, in chunks."""
ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()", "serve")
READY_SECONDS, COMPILED_SECONDS, TURN_SECONDS, WATCH_SECONDS = 120.0, 600.0, 300.0, 8.0


class Client(asyncio.Protocol):
    """Streams answers over one connection until `most` have begun in all. It looks at how an answer
    begins and ends, and no more: it shares the engine's cores."""

    def __init__(self, request: bytes, answers: Iterator[int], most: int) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self._request, self._answers, self._most = request, answers, most
        self._transport: asyncio.WriteTransport | None = None
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._ask()

    def data_received(self, data: bytes) -> None:
        if not self._last and not data.startswith(b"HTTP/1.1 200"):
            self._end(f"the engine answers {data[:200]!r}")
            return
        self._last = data if len(data) >= len(END) else (self._last + data)[-len(END) :]
        if self._last.endswith(END):
            self._ask()
        elif self._last.endswith(END[-7:]):
            self._end(f"a stream ends with {self._last!r}")

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the engine has closed a connection")

    def _ask(self) -> None:
        self._last = b""
        if next(self._answers) >= self._most:
            self._end("")
        elif self._transport is not None:
            self._transport.write(self._request)

    def _end(self, fault: str) -> None:
        if not self.over.done():
            self.over.set_result(fault)
        if self._transport is not None:
            self._transport.close()


async def turn(url: str, clients: int, most: int) -> float:
    """Tokens per second; raises SystemExit where an answer is not whole."""
    host, _, port = url.removeprefix("http://").partition(":")
    request = (
        f"POST {C} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    answers, began = itertools.count(), time.monotonic()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Client(request, answers, most), host, int(port))
        for _ in range(clients)
    ]
    for _, one in made:
        if fault := await one.over:
            raise SystemExit(f"error: {fault}")
    return most * TOKENS / (time.monotonic() - began)


def processes(server: Server) -> dict[str, int]:
    """The engine's processes, by their part."""
    found: dict[str, int] = {}
    for child in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for pid in child.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "pds_engine.child" in words:
                found[words[words.index("pds_engine.child") + 1]] = int(pid)
    return found


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Of each process since it started, of threads that have ended too, and of this one."""
    # The clock of a process's CPU time, as clock_getcpuclockid(3) makes it on Linux.
    spent = {name: time.clock_gettime(~pid << 3 | 2) for name, pid in pids.items()}
    return {**spent, "client": time.process_time()}


def measure(server: Server, clients: int, rounds: int) -> tuple[float, dict[str, float]]:
    """(tokens per second, CPU microseconds a token by process)."""
    most = rounds * max(clients, 4)
    pids = processes(server)
    before = cpu_seconds(pids)
    with doing(f"{server.name}: {clients} clients, {most} answers", TURN_SECONDS):
        speed = uvloop.run(turn(server.url, clients, most))
    after = cpu_seconds(pids)
    tokens = most * TOKENS
    return speed, {name: (after[name] - before[name]) / tokens * 1e6 for name in after}


def draw(server: Server, to: Path) -> None:
    """A flame graph of the engine at TOLD clients."""
    with watched(processes(server)) as stacks:
        begun, costs = time.monotonic(), list[dict[str, float]]()
        while time.monotonic() - begun < WATCH_SECONDS:
            costs.append(measure(server, TOLD, 2)[1])
    panels = [
        Panel(f"{name}: {min(cost[name] for cost in costs):.0f} µs a token", stacks[name])
        for name in stacks
    ]
    to.write_text(drawn(f"{TOLD} clients, the tiny model, while py-spy watches", panels))


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
def engines(commit: str, compiled: bool) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        trees = {"before": stack.enter_context(checked_out(commit)), "now": ROOT}
        # Trees may have kernels in common.
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        started = {}
        for name, tree in trees.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            Keys.make().write(folder)
            settings = (
                "role=unified", "pod.group=clients", f"http.keys_dir={folder}",
                "http.metrics_port=0", "http.control_port=0", "http.rendezvous_port=0",
                "kv.port_base=0", "scheduler.max_running=256",
            )  # fmt: skip
            if compiled:
                places = f"cache.path={cache}", f"cache.private={folder}/own"
                settings = (*settings, "compile=true", *places)
            words = (word for setting in settings for word in ("--set", setting))
            model = ("--model", str(MODEL), "--dtype", "float32")
            started[name] = Server(folder, name, *ENGINE, *model, *words, tree=tree)
            stack.callback(started[name].end)
        with doing("two engines start", COMPILED_SECONDS if compiled else READY_SECONDS):
            while not all(server.answers("/readyz") for server in started.values()):
                time.sleep(0.1)
        yield started


def least(costs: list[dict[str, float]]) -> dict[str, float]:
    """Of each process. What disturbs a turn only adds to it."""
    return {process: round(min(cost[process] for cost in costs), 1) for process in costs[0]}


def report(options: argparse.Namespace, commit: str) -> dict[str, Any]:
    turns, rounds = (3, 1) if options.quick else (5, 4)
    speeds: dict[str, dict[int, list[float]]] = {}
    costs: dict[str, dict[int, list[dict[str, float]]]] = {}
    with engines(commit, options.compiled) as started:
        for name, server in started.items():
            measure(server, 16, 1)  # warm
            speeds[name] = {clients: [] for clients in CLIENTS}
            costs[name] = {clients: [] for clients in CLIENTS}
        for number in range(turns):
            for clients in CLIENTS:
                for name in sorted(started, reverse=bool(number % 2)):
                    speed, cost = measure(started[name], clients, rounds)
                    speeds[name][clients].append(speed)
                    costs[name][clients].append(cost)
        if options.flames is not None:
            draw(started["now"], options.flames)
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
        "compiled": options.compiled,
        "tokens_per_s": {clients: round(speed) for clients, speed in now.items()},
        "tokens_per_s_before": {clients: round(speed) for clients, speed in before.items()},
        "falls": round(max(1 - more / less for less, more in pairwise(now.values())), 3),
        "ratios": {clients: round(now[clients] / before[clients], 3) for clients in CLIENTS},
        "us_per_token": {
            name: {clients: least(found) for clients, found in by.items()}
            for name, by in costs.items()
        },
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three turns of few answers")
    parser.add_argument("--compiled", action="store_true", help="compile ahead, as a warm-up does")
    parser.add_argument("--before", default="HEAD~1", help="the commit to compare with")
    parser.add_argument("--flames", type=Path, help="where a flame graph is written, as SVG")
    options = parser.parse_args()
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{options.before}^{{commit}}"]
    commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    say(f"beside {commit[:12]}")
    print(json.dumps(report(options, commit)))


if __name__ == "__main__":
    main()
