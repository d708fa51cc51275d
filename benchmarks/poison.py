"""What four well-behaved streams notice while somebody else sends poison.

    python benchmarks/poison.py [--quick]

A prefill group, a decode group, and a router before them (which streams and one half of each attack
go through), and a unified engine that is asked directly by the other half. The model is the tiny
one. Four clients stream answers of 400 tokens, two at the router and two at the engine, alone at
first, then beside each attack:

- numbers: every field of the API at 2**31, 2**63, 2**64, ±1e308, NaN, −1.
- bodies: 8 MB to each route: texts, escapes, lists of ids, of texts, of lists and of several kinds,
  nested fields, messages, parts, tools, numbers of thousands of digits.
- stops: 16 stop strings of 1,024 characters that nearly match, at n = 48.
- choices, for comparison: the same 48 choices without stop strings, which is honest work and does
  not count in `value`. `over_choices` of `stops` is what the stop strings cost beyond the batch.

An attack lasts 30 s (--quick: 4) and is of at most 20,000 requests a target. `value` is the
largest p99 of the bystanders' gaps between events during an attack over theirs alone (aim: 3 at the
most), which `by_attack` has by attack; `slowest_healthz_s` is the longest that a `/healthz` of
the engine and the router took (aim: 1 s; 30 where it did not answer), `ended` counts processes that
ended and `refused` bystanders that did not get their answer (aim: none).
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from common import doing, say
from common.attacks import ATTACKS, MODEL, Attack, C
from common.servers import Server
from pds_engine.keys import Keys

ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()", "serve")
ROUTER = (sys.executable, "-m", "pds_engine.router", "serve")
MOST = 20_000
TOKENS = 400
READY_SECONDS = 120.0
PROBE_SECONDS = 30.0

CONTROL = "choices"
CLIENTS = {"numbers": 2, "bodies": 2, "choices": 1, "stops": 1}
"""Of each attack, at the router and at the engine."""


# ---- the clients ---------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a phase was like."""

    gaps: list[float] = field(default_factory=list)
    refused: int = 0
    healthz: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)

    def p99(self) -> float:
        return sorted(self.gaps)[int(len(self.gaps) * 0.99)] if self.gaps else float("inf")


async def bystander(client: httpx.AsyncClient, url: str, seen: Seen, end: float) -> None:
    """Streams one answer after the other."""
    body = {"prompt": "The value of", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    while time.monotonic() < end:
        try:
            async with client.stream("POST", url + C, json=body) as answer:
                last = 0.0
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    now = time.monotonic()
                    if last:
                        seen.gaps.append(now - last)
                    last = now
                    if now >= end:
                        return
                if answer.status_code != 200:
                    seen.refused += 1
                    await asyncio.sleep(0.1)
        except httpx.HTTPError:
            seen.refused += 1
            await asyncio.sleep(0.1)


async def prober(client: httpx.AsyncClient, url: str, seen: Seen, end: float) -> None:
    while (began := time.monotonic()) < end:
        try:
            healthy = (await client.get(url + "/healthz", timeout=PROBE_SECONDS)).status_code == 200
        except httpx.HTTPError:
            healthy = False
        seen.healthz = max(seen.healthz, time.monotonic() - began if healthy else PROBE_SECONDS)
        await asyncio.sleep(0.1)


def attack(url: str, name: str, seconds: float) -> None:
    """A process of its own: what it costs to send is not the bystanders' clock."""
    asyncio.run(_attack(url, ATTACKS[name](), seconds, CLIENTS[name]))


async def _attack(url: str, poison: Attack, seconds: float, clients: int) -> None:
    end, turn, counted = time.monotonic() + seconds, itertools.count(), Counter[str]()

    async def attacker(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end and (at := next(turn)) < MOST:
            path, body = poison[at % len(poison)]
            try:
                async with asyncio.timeout(max(end - time.monotonic(), 0.01)):
                    answer = await client.post(url + path, content=body)
                    counted[str(answer.status_code)] += 1
                    if answer.status_code == 429:
                        await asyncio.sleep(0.05)
            except (TimeoutError, httpx.HTTPError) as error:
                counted[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    async with httpx.AsyncClient(timeout=seconds) as client:
        await asyncio.gather(*(attacker(client) for _ in range(clients)))
    print(json.dumps(counted))


async def phase(router: str, engine: str, seconds: float, name: str | None) -> Seen:
    seen, attackers = Seen(), []
    end = time.monotonic() + seconds
    if name is not None:
        for url in (router, engine):
            command = (sys.executable, __file__, "--attack", url, name, str(seconds))
            attackers.append(
                await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            )
    try:
        async with httpx.AsyncClient(timeout=60) as client:
            await asyncio.gather(
                *(bystander(client, url, seen, end) for url in (router, engine) for _ in range(2)),
                *(prober(client, url, seen, end) for url in (router, engine)),
            )
        for attacker in attackers:
            async with asyncio.timeout(30):
                counted, _ = await attacker.communicate()
            seen.answers.update(json.loads(counted))
    finally:
        for attacker in attackers:
            with suppress(ProcessLookupError):
                attacker.kill()
    return seen


# ---- the processes -------------------------------------------------------------------------------


def wait(what: str, done: Callable[[], bool]) -> None:
    with doing(f"waiting for {what}", READY_SECONDS):
        while not done():
            time.sleep(0.1)


def engine(folder: Path, name: str) -> Server:
    settings = (
        f"role={name}", f"pod.group={name}", f"http.keys_dir={folder}", "http.metrics_port=0",
        "http.control_port=0", "http.rendezvous_port=0", "kv.port_base=0", "kv.backends=[tcp]",
    )  # fmt: skip
    words = (word for setting in settings for word in ("--set", setting))
    model = ("--model", str(MODEL), "--dtype", "float32")
    return Server(folder, name, *ENGINE, *model, *words)


@contextmanager
def servers() -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        Keys.make().write(folder)
        started: dict[str, Server] = {}
        for name in ("prefill", "decode", "unified"):
            started[name] = engine(folder, name)
            stack.callback(started[name].end)
        wait("three engines", lambda: all(e.answers("/readyz") for e in started.values()))
        backends = (("--backend", started[role].url) for role in ("prefill", "decode"))
        words = (*itertools.chain(*backends), "--keys-dir", str(folder), "--metrics-port", "0")
        started["router"] = Server(folder, "router", *ROUTER, *words)
        stack.callback(started["router"].end)
        wait("the router", lambda: started["router"].answers("/readyz"))
        yield started


def measure(seconds: float) -> dict[str, Any]:
    with servers() as started:
        router, unified = started["router"].url, started["unified"].url
        say("a few seconds for warming up")
        asyncio.run(phase(router, unified, 3.0, None))
        say(f"the bystanders alone, {seconds:.0f} s")
        alone = asyncio.run(phase(router, unified, seconds, None))
        during: dict[str, Seen] = {}
        for name in ATTACKS:
            say(f"beside {name}, {seconds:.0f} s")
            during[name] = asyncio.run(phase(router, unified, seconds, name))
        ended = [name for name, server in started.items() if server.ended]
    return report(alone, during, ended)


def report(alone: Seen, during: dict[str, Seen], ended: list[str]) -> dict[str, Any]:
    by_attack = {
        name: {
            "ratio": round(seen.p99() / alone.p99(), 2),
            "p99_ms": round(seen.p99() * 1e3, 1),
            "healthz_s": round(seen.healthz, 3),
            "gaps": len(seen.gaps),
            "refused": seen.refused,
            "answers": dict(seen.answers),
        }
        for name, seen in during.items()
    }
    stops, plain = by_attack["stops"], by_attack[CONTROL]
    stops["over_choices"] = round(stops["p99_ms"] / plain["p99_ms"], 2)
    return {
        "name": "poison",
        "value": max(seen["ratio"] for name, seen in by_attack.items() if name != CONTROL),
        "unit": "x",
        "better": "lower",
        "baseline": 1.0,
        "ratio": None,
        "machine": f"{platform.machine()} {os.cpu_count()} cores",
        "slowest_healthz_s": max(seen["healthz_s"] for seen in by_attack.values()),
        "ended": len(ended),
        "refused": alone.refused + sum(seen.refused for seen in during.values()),
        "alone_p99_ms": round(alone.p99() * 1e3, 1),
        "by_attack": by_attack,
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="4 s an attack")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        url, name, seconds = options.attack
        attack(url, name, float(seconds))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, too
    print(json.dumps(measure(4.0 if options.quick else 30.0)))


if __name__ == "__main__":
    main()
