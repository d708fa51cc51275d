"""Real groups: a decode group runs out of pages, is killed, or has to drain: no client sees it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pds_engine import signing
from pds_engine.keys import Keys
from real_processes import ENGINE, MODEL, ROUTER, ServingProcess, children
from waiting import wait_until

Event = tuple[list[dict[str, Any]], dict[str, int] | None] | str
"""Choices and usage of one event, or the line that ends the stream."""
STREAMS: list[dict[str, Any]] = [
    {"prompt": "The value of", "max_tokens": 300, "ignore_eos": True, "temperature": 0},
    {"prompt": "a b c", "max_tokens": 250, "ignore_eos": True, "seed": 5, "temperature": 0.9},
    {"prompt": "1 2", "max_tokens": 260, "ignore_eos": True, "temperature": 0, "logprobs": 1},
    {"prompt": "x", "max_tokens": 280, "ignore_eos": True, "seed": 3, "presence_penalty": 1.5},
]
"""Greedy, seeded, scored and penalised: each says the same whenever it is asked."""


PAGES = 80
"""Pages of each decode group: four of these streams have room in it, five do not."""


class World:
    """One prefill and two decode groups behind a router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = Keys.make()
        self.keys.write(folder)
        self.groups: dict[str, ServingProcess] = {}
        self.processes: list[ServingProcess] = []
        """All that were begun, the killed ones too."""

    def start(self) -> None:
        for name in ("prefill-0", "decode-0", "decode-1"):
            self.groups[name] = self.group(name)
        for group in self.groups.values():
            wait_until(group.answers, 120)
        backends = [word for g in self.groups.values() for word in ("--backend", g.url)]
        options = ("--keys-dir", str(self.folder), "--metrics-port", "0")
        self.router = self.begin("router", *ROUTER, *backends, *options)
        wait_until(self.router.answers, 30)
        wait_until(self.all_routable, 30)

    def group(self, name: str, port: int = 0) -> ServingProcess:
        role = name.partition("-")[0]
        options = (
            f"role={role}", f"pod.group={name}", f"http.keys_dir={self.folder}",
            "http.metrics_port=0", "http.control_port=0", "http.rendezvous_port=0",
            "kv.port_base=0", "kv.backends=[tcp]", "max_model_len=1024",
            *([f"kv.pages={PAGES}"] if role == "decode" else []),
        )  # fmt: skip
        words = (word for option in options for word in ("--set", option))
        model = ("--model", str(MODEL), "--dtype", "float32")
        return self.begin(name, *ENGINE, "serve", *model, *words, port=port)

    def begin(self, name: str, *words: str, port: int = 0) -> ServingProcess:
        self.processes.append(ServingProcess(self.folder, name, *words, port=port))
        return self.processes[-1]

    def all_routable(self) -> bool:
        return all(b["routable"] for b in self.router.get("/pds/backends").json()["backends"])

    def busy(self, name: str) -> bool:
        """Something of it decodes."""
        return bool(self.groups[name].get("/pds/state").json()["running"])

    def drain(self, name: str, seconds: float) -> None:
        signed = signing.signed(self.keys.hmac, "POST", "/pds/drain", {}, int(time.time()) + 60)
        url = f"{self.groups[name].url}/pds/drain"
        httpx.post(url, json={"deadline_seconds": seconds}, headers=signed).raise_for_status()

    def preemptions(self) -> int:
        """Of both decode groups together."""
        states = [self.groups[f"decode-{at}"].get("/pds/state").json() for at in range(2)]
        return sum(state["preemptions"] for state in states)

    def metrics(self) -> dict[str, str]:
        return dict(line.rsplit(" ", 1) for line in self.router.get("/metrics").text.splitlines())

    def migrations(self) -> dict[str, int]:
        """Their number by reason."""
        name = "pds_router_migrations_total"
        return {
            key.split('"')[1]: int(float(value))
            for key, value in self.metrics().items()
            if key.startswith(name)
        }

    def moved(self) -> int:
        """Streams that went on elsewhere, but for those that were preempted for want of pages."""
        return sum(count for why, count in self.migrations().items() if why != "preempted")

    def seconds(self) -> float:
        """From the break of a stream to its next token, on average."""
        values, name = self.metrics(), "pds_router_migration_seconds"
        return float(values[f"{name}_sum"]) / float(values[f"{name}_count"])

    def stream(self, body: dict[str, Any]) -> list[Event]:
        """The choices and usage of each event; an error, or a missing end, fails."""
        lines: list[Event] = []
        whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream(
            "POST", f"{self.router.url}/v1/completions", json=whole, timeout=90
        ) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    assert line in ("", "data: [DONE]")
                    lines += [line] if line else []
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                if event["usage"]:
                    event["usage"].pop("prompt_tokens_details")  # it is the last prefill group's
                lines.append((_rounded(event["choices"]), event["usage"]))
        assert lines[-1] == "data: [DONE]"
        return lines

    def close(self) -> None:
        for process in self.processes:
            process.end()


def _rounded(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of recomputed keys differ in the last digits of float32."""
    for choice in choices:
        if scores := choice["logprobs"]:
            scores["token_logprobs"] = [round(value, 3) for value in scores["token_logprobs"]]
            scores["top_logprobs"] = [
                {name: round(value, 3) for name, value in top.items()}
                for top in scores["top_logprobs"]
            ]
    return choices


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def unseen(world: World, name: str, end: Callable[[], None]) -> None:
    """`end` comes over the group while it decodes; no stream is any different."""
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(world.stream, STREAMS))
        before = world.moved()
        asked = [pool.submit(world.stream, body) for body in STREAMS * 2]
        wait_until(lambda: world.busy(name), 30)
        end()
        assert [each.result() for each in asked] == right * 2
    moved = world.moved() - before
    assert moved > 0
    each = world.seconds()
    print(f"{name}: {moved} of {len(asked)} streams went on elsewhere, in {each:.2f} s each so far")


def test_streams_that_are_put_out_for_want_of_pages_go_unseen(world: World) -> None:
    """The first one here: nothing has failed yet, and nothing does."""
    with ThreadPoolExecutor(12) as pool:
        right = list(pool.map(world.stream, STREAMS))
        assert world.preemptions() == 0
        assert list(pool.map(world.stream, STREAMS * 3)) == right * 3
    count, metrics = world.preemptions(), world.metrics()
    assert world.migrations() == {"preempted": count}
    assert count > 0
    assert not any(name.startswith("pds_router_failed_attempts_total") for name in metrics)
    backends = world.router.get("/pds/backends").json()["backends"]
    assert [(each["failures"], each["routable"]) for each in backends] == [(0, True)] * 3
    print(f"{count} times preempted among 12 streams, back in {world.seconds():.2f} s each")


def test_a_killed_worker_in_mid_stream_goes_unseen(world: World) -> None:
    killed = world.groups["decode-0"]
    unseen(world, "decode-0", lambda: os.kill(children(killed.process)["worker-0"], signal.SIGKILL))
    assert killed.process.wait(10) == 1
    world.groups["decode-0"] = world.group("decode-0", killed.port)
    wait_until(world.all_routable, 120)


def test_a_forced_drain_in_mid_stream_goes_unseen(world: World) -> None:
    """The last one here: its group takes nothing any more."""
    unseen(world, "decode-1", lambda: world.drain("decode-1", 0.0))
    state = world.groups["decode-1"].get("/pds/state").json()
    assert (state["draining"], state["in_flight"], state["kv_used"]) == (True, 0, 0)
