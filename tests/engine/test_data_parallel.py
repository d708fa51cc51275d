"""Real groups of several dp ranks, as `pds-engine serve` starts them: alone, and handing over."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pds_engine.keys import Keys
from real_processes import ENGINE, MODEL, ROUTER, ServingProcess, children
from waiting import wait_until

CLIENTS = 16
PROMPTS = [[3 + (7 * at + place) % 180 for place in range(4 + 23 * (at % 7))] for at in range(24)]
"""From 4 to 142 tokens, most of them unlike each other."""


class Fleet:
    """Groups that hand over to each other, and perhaps a router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        Keys.make().write(folder)
        self.processes: list[ServingProcess] = []

    def group(self, name: str, role: str = "unified", **options: Any) -> ServingProcess:
        shape = {key: options.pop(key, 1) for key in ("tp", "dp", "pp")}
        shape["ranks_per_pod"] = shape["tp"] * shape["dp"] * shape["pp"]
        settings = {
            "role": role, "pod.group": name, "http.keys_dir": self.folder,
            "http.metrics_port": 0, "http.control_port": 0, "http.rendezvous_port": 0,
            "kv.port_base": 0, "kv.backends": "[tcp]", "kv.pages": 64, "max_model_len": 512,
            "scheduler.max_running": 4, "scheduler.chunk_size": 64,
            **{f"parallelism.{key}": value for key, value in shape.items()},
            **{key.replace("__", "."): value for key, value in options.items()},
        }  # fmt: skip
        words = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
        model = ("--model", str(MODEL), "--dtype", "float32")
        return self.begin(name, *ENGINE, "serve", *model, *words)

    def router(self, *groups: ServingProcess) -> ServingProcess:
        for group in groups:
            wait_until(group.answers, 120)
        backends = [word for group in groups for word in ("--backend", group.url)]
        options = ("--keys-dir", str(self.folder), "--metrics-port", "0")
        router = self.begin("router", *ROUTER, *backends, *options)
        wait_until(router.answers, 30)
        wait_until(lambda: all(b["routable"] for b in fleet_of(router)), 30)
        return router

    def begin(self, name: str, *words: str) -> ServingProcess:
        self.processes.append(ServingProcess(self.folder, name, *words))
        return self.processes[-1]


def fleet_of(router: ServingProcess) -> list[dict[str, Any]]:
    backends: list[dict[str, Any]] = router.get("/pds/backends").json()["backends"]
    return backends


def state(group: ServingProcess) -> dict[str, Any]:
    found: dict[str, Any] = group.get("/pds/state").json()
    return found


def is_empty(group: ServingProcess) -> bool:
    """Nothing is left of any request."""
    left = ("running", "kv_used", "in_flight", "queued_tokens", "transfers_in_flight")
    found = state(group)
    return not any(found[key] for key in left)


def answer(url: str, prompt: list[int], **more: Any) -> str:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **more}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def answers(url: str, prompts: list[list[int]], clients: int = CLIENTS) -> list[str]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda prompt: answer(url, prompt), prompts))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Ends all that it started."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    for process in fleet.processes:
        process.end()


@pytest.fixture(scope="module")
def alone(fleet: Fleet) -> list[str]:
    """What a group of one rank says to each of PROMPTS."""
    group = fleet.group("alone")
    wait_until(group.answers, 60)
    said = answers(group.url, PROMPTS)
    group.end()
    return said


@pytest.mark.parametrize(
    "options",
    [
        {"dp": 2},
        {"dp": 2, "dp__sync_device": "device"},
        {"dp": 2, "scheduler__async_scheduling": "false"},
        {"dp": 2, "tp": 2, "pp": 2},
    ],
)
def test_it_answers_as_one_rank_does(fleet: Fleet, alone: list[str], options: dict[str, Any]):
    group = fleet.group("-".join(map(str, ("group", *options.values()))), **options)
    wait_until(group.answers, 120)
    assert answers(group.url, PROMPTS) == alone
    wait_until(lambda: is_empty(group), 5)
    assert state(group)["kv_total"] == 2 * 64
    group.end()


@pytest.mark.parametrize(
    ("prefill", "decode", "gather"), [(2, 1, "rows"), (1, 2, "none"), (2, 4, "rows")]
)
def test_dp_ranks_hand_over_to_dp_ranks(
    fleet: Fleet, alone: list[str], prefill: int, decode: int, gather: str
):
    p = fleet.group(f"p{prefill}{decode}", "prefill", dp=prefill)
    d = fleet.group(f"d{prefill}{decode}", "decode", dp=decode, dp__gather=gather)
    router = fleet.router(p, d)
    assert answers(router.url, PROMPTS) == alone
    for group in (p, d):
        wait_until(lambda group=group: is_empty(group), 5)
    for process in (router, p, d):
        process.end()


def test_a_free_slot_of_any_dp_rank_is_taken_although_nobody_may_wait(fleet: Fleet):
    group = fleet.group("no-queue", dp=2, scheduler__max_waiting=0)
    wait_until(group.answers, 60)
    for _ in range(3):
        answers(group.url, PROMPTS[:8], clients=8)  # four slots on each of two ranks
        wait_until(lambda: is_empty(group), 5)
    group.end()


def test_an_idle_group_costs_no_processor_time(fleet: Fleet):
    group = fleet.group("idle", dp=2)
    wait_until(group.answers, 60)
    answer(group.url, PROMPTS[3])
    wait_until(lambda: not state(group)["in_flight"], 10)
    kinds = children(group.process)
    before = {pid: spent(pid) for pid in kinds.values()}
    steps = state(group)["steps_done"]
    wait_until(lambda: all(alive(pid) for pid in kinds.values()), 3)
    assert state(group)["steps_done"] == steps
    assert sum(spent(pid) - before[pid] for pid in kinds.values()) < 0.5
    group.end()


def spent(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alive(pid: int) -> bool:
    os.kill(pid, 0)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_ends_its_group_and_is_named(fleet: Fleet, how: signal.Signals):
    group = fleet.group(f"lost-{how.name}", dp=2, tp=2, scheduler__step_timeout=10)
    wait_until(group.answers, 60)
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(httpx.post, f"{group.url}/v1/completions", json=endless, timeout=60)
            for endless in [{"prompt": [5, 6], "max_tokens": 400, "ignore_eos": True}] * 4
        ]
        wait_until(lambda: state(group)["running"] == 4, 30)
        os.kill(children(group.process)["worker-3"], how)
        assert group.process.wait(30) == 1
        for each in asked:  # none is left waiting, and none is told that it was answered
            assert each.exception(5) is not None or each.result().status_code >= 500
    assert "rank 3 (stage 0, dp rank 1)" in group.log.read_text()
