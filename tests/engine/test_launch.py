"""A pod's processes from outside: `pds-engine serve` as a user starts it, and how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from free import free_pair, free_port
from pds_engine.keys import Keys
from real_processes import ENGINE, MODEL, children
from waiting import wait_until


class ServedGroup:
    """One `pds-engine serve` of the tiny model."""

    def __init__(self, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*ENGINE, "serve", "--model", str(MODEL), "--dtype", "float32", "--port", str(port),
             "--set", "http.metrics_port=0", "--set", "http.control_port=0",
             "--set", "http.rendezvous_port=0",
             "--set", "kv.port_base=0", "--set", "kv.backends=[tcp]", *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended: {self.process.stderr and self.process.stderr.read()}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def children(self) -> dict[str, int]:
        """Process ids by kind."""
        return children(self.process)

    def begun(self) -> bool:
        """Its processes exist, whatever they have imported so far."""
        try:
            return len(self.children()) == 3
        except (OSError, ValueError):
            return False

    def complete(self, **body: object) -> httpx.Response:
        request = {"model": "tiny", "prompt": "The value of", "temperature": 0, **body}
        return httpx.post(f"{self.url}/v1/completions", json=request, timeout=60)


@contextmanager
def started(*options: str) -> Iterator[ServedGroup]:
    """A group that is not waited for."""
    made = ServedGroup(*options)
    try:
        yield made
    finally:
        made.process.kill()  # its children die with it, stopped ones too
        made.process.communicate()


@pytest.fixture
def group() -> Iterator[ServedGroup]:
    with started() as made:
        wait_until(made.ready, 90)
        yield made


@pytest.fixture
def begun() -> Iterator[ServedGroup]:
    """Its processes exist, and that is all."""
    with started() as made:
        wait_until(made.begun, 30)
        yield made


def test_equal_chats_tell_what_was_cached_and_sigterm_lets_requests_end(group: ServedGroup) -> None:
    cached(group)
    body = {"model": "tiny", "prompt": "The value of", "max_tokens": 400, "ignore_eos": True}
    request = {**body, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{group.url}/v1/completions", json=request, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        group.process.send_signal(signal.SIGTERM)
        assert "data: [DONE]" in list(lines)
    assert group.process.wait(30) == 0


def cached(group: ServedGroup) -> None:
    """The second of two equal chats reports what the first one left."""
    system = {"role": "system", "content": "Answer with the value of the last letter. " * 4}
    chat = {"messages": [system, {"role": "user", "content": "a"}], "max_tokens": 20}
    first, second = (
        httpx.post(
            f"{group.url}/v1/chat/completions",
            json={"model": "tiny", "temperature": 0, **chat},
            timeout=60,
        ).json()
        for _ in range(2)
    )
    assert first["choices"][0]["message"] == second["choices"][0]["message"]
    prompt = first["usage"]["prompt_tokens"]
    cached = (prompt - 1) // 16 * 16
    assert [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (first, second)] == [
        0,
        cached,
    ]
    state = httpx.get(f"{group.url}/pds/state", timeout=5).json()
    assert (state["prefix_query_tokens"], state["prefix_hit_tokens"]) == (2 * prompt, cached)
    assert "pds_kv_pages_cached" in httpx.get(f"{group.url}/metrics", timeout=5).text


def ends(group: ServedGroup, victim: str) -> None:
    children = group.children()
    assert set(children) == {"scheduler", "worker-0", "server"}
    os.kill(children[victim], signal.SIGKILL)
    assert group.process.wait(5) == 1
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()), 5)


def test_the_death_of_a_serving_worker_ends_all(group: ServedGroup) -> None:
    ends(group, "worker-0")


@pytest.mark.parametrize("victim", ["worker-0", "scheduler", "server"])
def test_the_death_of_a_process_that_starts_ends_all(begun: ServedGroup, victim: str) -> None:
    ends(begun, victim)


def test_killing_launch_leaves_no_child_behind(begun: ServedGroup) -> None:
    children = begun.children()
    begun.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()), 5)


@pytest.fixture
def staged() -> Iterator[ServedGroup]:
    """Two stages, whose prompts go through in many small chunks."""
    options = ["scheduler.chunk_size=16", "scheduler.step_timeout=5"]
    with started("--pp", "2", *(w for key in options for w in ("--set", key))) as made:
        wait_until(made.ready, 90)
        yield made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_a_stage_in_mid_prefill_is_named_and_reported(
    staged: ServedGroup, number: signal.Signals
) -> None:
    children = staged.children()
    assert set(children) == {"scheduler", "worker-0", "worker-1", "server"}
    short = {"max_tokens": 5, "ignore_eos": True}
    assert staged.complete(**short).json()["usage"]["completion_tokens"] == 5

    def done() -> int:
        return int(httpx.get(f"{staged.url}/pds/state").json()["steps_done"])

    before = done()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(staged.complete, prompt=[5] * 3900, **short)
        wait_until(lambda: done() > before + 3, 10)
        assert done() < before + 200
        os.kill(children["worker-1"], number)  # its group may be gone a moment later
        assert answer.result().status_code == 503
    assert staged.process.wait(10) == 1
    said = staged.process.stderr.read() if staged.process.stderr else ""
    assert "rank 1 (stage 1)" in said
    assert ("when it fell silent" in said) == (number == signal.SIGSTOP)


@pytest.fixture
def axis() -> str:
    """What the two pods of `pods` divide."""
    return "pp"


@pytest.fixture
def pods(tmp_path: Path, axis: str) -> Iterator[list[ServedGroup]]:
    """The leader's pod and that of the second rank, each with an incarnation of its own."""
    Keys.make().write(tmp_path)
    tree = {
        f"parallelism.{axis}": 2,
        "scheduler.step_timeout": 5,
        "http.keys_dir": tmp_path,
        "http.control_port": free_pair(),
        "http.rendezvous_port": free_port(),
    }
    own = [
        {"pod.index": index, "pod.incarnation": name} for index, name in enumerate(("one", "two"))
    ]
    pods = [
        ServedGroup(
            *(w for key, value in {**tree, **of}.items() for w in ("--set", f"{key}={value}"))
        )
        for of in own
    ]
    try:
        yield pods
    finally:
        for pod in pods:
            pod.process.kill()
            pod.process.communicate()


@pytest.mark.parametrize("axis", ["dp"])
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.soak)]
)
def test_a_dp_rank_of_the_other_pod_that_is_lost_amid_a_pass_ends_the_group(
    pods: list[ServedGroup], number: signal.Signals
) -> None:
    wait_until(lambda: all(pod.ready() for pod in pods), 90)
    schedulers = {"scheduler-0", "scheduler-1"}
    assert [set(pod.children()) for pod in pods] == [
        {*schedulers, "worker-0", "server"},
        {"worker-1", "server"},
    ]
    with ThreadPoolExecutor(4) as clients:
        long = {"max_tokens": 3000, "ignore_eos": True}
        answers = [clients.submit(pods[0].complete, **long) for _ in range(4)]
        state = f"{pods[0].url}/pds/state"
        wait_until(lambda: httpx.get(state).json()["running"] == 4, 30)
        os.kill(pods[1].children()["worker-1"], number)
        assert [answer.result().status_code for answer in answers] == [503] * 4
    assert [pod.process.wait(10) for pod in pods] == [1, 1]
    said = [pod.process.stderr.read() for pod in pods if pod.process.stderr]
    if number == signal.SIGKILL:
        # Its scheduler misses it, or rank 0 amid a collective; on one address gloo names nobody.
        missed = ("scheduler-1 ends: rank 1 (stage 0, dp rank 1) has ended", "failed at shard 0")
        assert any(each in said[0] for each in missed), said[0]
        assert "status -6" not in said[0]
        assert "rank 1 (stage 0, dp rank 1) ended with status -9" in said[1]
    else:
        blamed = [line for line in said[0].splitlines() if "when it fell silent" in line]
        assert any("rank 1 (stage 0, dp rank 1)" in line for line in blamed), said[0]


def test_a_group_of_two_pods_serves_and_ends_as_one(pods: list[ServedGroup]) -> None:
    wait_until(lambda: all(pod.ready() for pod in pods), 90)
    assert [set(pod.children()) for pod in pods] == [
        {"scheduler", "worker-0", "server"},
        {"worker-1", "server"},
    ]
    assert httpx.get(f"{pods[1].url}/healthz").status_code == 200
    assert httpx.get(f"{pods[1].url}/v1/models").status_code == 404
    body = pods[0].complete(max_tokens=5, ignore_eos=True).json()
    assert body["usage"]["completion_tokens"] == 5
    metrics = httpx.get(f"{pods[1].url}/metrics").text
    assert 'pds_rank_ready{rank="1"} 1.0' in metrics
    assert 'pds_rank_hidden_received_total{rank="1"}' in metrics
    os.kill(pods[1].children()["worker-1"], signal.SIGKILL)
    assert [pod.process.wait(10) for pod in pods] == [1, 1]
    said = [pod.process.stderr.read() for pod in pods if pod.process.stderr]
    assert "rank 1 (stage 1) has ended" in said[0]
    assert "rank 1 (stage 1) ended with status -9" in said[1]


def test_a_pod_without_a_leader_ends_on_sigterm(pods: list[ServedGroup]) -> None:
    pods[0].process.kill()
    url = f"{pods[1].url}/healthz"

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, 60)
    assert not pods[1].ready()
    pods[1].process.send_signal(signal.SIGTERM)
    assert pods[1].process.wait(10) == 0


def test_sigterm_on_another_pod_than_the_leaders_drains_the_group(pods: list[ServedGroup]) -> None:
    wait_until(lambda: all(pod.ready() for pod in pods), 90)
    body = {"model": "tiny", "prompt": "The value of", "max_tokens": 400, "ignore_eos": True}
    request = {**body, "stream": True, "temperature": 0}
    url = f"{pods[0].url}/v1/completions"
    with httpx.stream("POST", url, json=request, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        pods[1].process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{pods[0].url}/pds/state").json()["draining"], 10)
        assert pods[0].complete(max_tokens=5).status_code == 503
        assert "data: [DONE]" in list(lines)
    pods[0].process.send_signal(signal.SIGTERM)  # as the operator deletes what is left of the group
    assert [pod.process.wait(15) for pod in pods] == [0, 0]


def test_weights_that_a_worker_cannot_load_end_with_78_and_a_note(tmp_path: Path) -> None:
    """However soon the scheduler misses the worker, and ends before it."""
    for path in MODEL.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    broken = ServedGroup("--set", f"model.path={tmp_path}")
    _, said = broken.process.communicate(timeout=90)
    assert broken.process.returncode == 78
    assert f"error: model.path: cannot read {weights}" in said


@pytest.mark.parametrize(
    ("key", "use"),
    [
        ("http.port", "HTTP"),
        ("http.metrics_port", "metrics"),
        ("http.control_port", "control (the scheduler)"),
        ("kv.port_base", "KV channels"),
    ],
)
def test_a_port_in_use_is_named_and_is_no_configuration_error(key: str, use: str) -> None:
    """78 would never be tried again, and the port's holder may be gone in a second."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        group = ServedGroup("--set", f"{key}={port}")
        _, said = group.process.communicate(timeout=60)
    assert group.process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}, the port of {use}: Address already in use" in said
    assert key in said


def test_a_configuration_error_ends_with_78_and_a_note(tmp_path: Path) -> None:
    config = tmp_path / "engine.json"
    config.write_text(json.dumps({"model": {"path": str(MODEL)}, "max_modle_len": 5}))
    done = subprocess.run(
        [*ENGINE, "serve", "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert "unknown key max_modle_len (did you mean max_model_len?)" in done.stderr
