"""Whole groups of real processes, scheduler and worker, driven as an API server would."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import zmq
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import Hello, Sampling, Source, State, Submit, Token, Welcome
from pds_engine.wire import Link

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Group:
    """A scheduler and a worker as launch starts them, and a link in the API server's place."""

    def __init__(self, config: EngineConfig, keys: Keys, folder: Path, name: str) -> None:
        self.name, self.port = name, free_port()
        address = f"tcp://127.0.0.1:{self.port}"
        keys.write(folder)
        pod = config.pod.model_copy(update={"group": name})
        (folder / "config.json").write_text(
            config.model_copy(update={"pod": pod}).model_dump_json()
        )
        launch = {"incarnation": name, "bind": address, "scheduler": address}
        (folder / "launch.json").write_text(json.dumps(launch))
        self.scheduler, self.worker = (
            subprocess.Popen([sys.executable, "-m", "pds_engine.child", kind, str(folder)])
            for kind in ("scheduler", "worker-0")
        )
        self.context = zmq.Context()
        self.link = Link(self.context, address, keys)
        self.link.send(Hello(peer="server", group=name, incarnation=name, rank=0))
        self.states: list[State] = []

    def await_ready(self) -> None:
        assert isinstance(self.receive(), Welcome)
        self.await_state(lambda state: state.ranks_ready == 1)

    def receive(self, seconds: float = 60.0):
        message = self.link.receive(timeout=seconds)
        if message is None:
            raise TimeoutError(f"{self.name} said nothing")
        return message

    def await_state(self, such) -> State:
        while True:
            message = self.receive()
            if isinstance(message, State) and such(message):
                return message

    def tokens(self, request_id: str, count: int) -> list[int]:
        return [token.token for token in self.answer(request_id, count)]

    def answer(self, request_id: str, count: int) -> list[Token]:
        found: list[Token] = []
        while len(found) < count:
            message = self.receive()
            if isinstance(message, State):
                continue
            assert isinstance(message, Token), message
            if message.request_id == request_id:
                found.append(message)
        assert [token.index for token in found] == list(range(count))
        return found

    def close(self) -> None:
        self.link.close()
        self.context.term()
        for process in (self.worker, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def start(keys, tmp_path):
    groups: list[Group] = []

    def begin(config: EngineConfig, name: str) -> Group:
        folder = tmp_path / name
        folder.mkdir()
        groups.append(Group(config, keys, folder, name))
        return groups[-1]

    yield begin
    for group in groups:
        group.close()


def prompt(length: int, seed: int) -> tuple[int, ...]:
    source = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 200, (length,), generator=source).tolist())


def greedy(model: Path, ids: tuple[int, ...], count: int) -> list[int]:
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(count):
            tokens = torch.cat((tokens, reference(tokens).logits[:, -1:].argmax(-1)), dim=1)
    return tokens[0, len(ids) :].tolist()


def submit(request_id: str, ids: tuple[int, ...], count: int, **keys) -> Submit:
    sampling = Sampling(max_tokens=count, temperature=0.0)
    return Submit(request_id=request_id, prompt_ids=ids, sampling=sampling, seed=1, **keys)


def assert_ends_with(killed: subprocess.Popen, other: subprocess.Popen) -> None:
    """A group lives and dies as one."""
    killed.send_signal(signal.SIGKILL)
    assert other.wait(10) == 1


def small_chunks(config: EngineConfig, **keys) -> EngineConfig:
    bounds = config.scheduler.model_copy(update={"chunk_size": 32})
    return config.model_copy(update={"scheduler": bounds, **keys})


def test_requests_side_by_side_in_a_unified_group(start, config, model):
    group = start(small_chunks(config), "both")
    group.await_ready()
    asked = {f"r{seed}": prompt(length, seed) for seed, length in enumerate((1, 16, 33, 100))}
    expected = {name: greedy(model, ids, 12) for name, ids in asked.items()}
    for name, ids in asked.items():
        group.link.send(submit(name, ids, 12))
    found: dict[str, list[int]] = {name: [] for name in asked}
    while any(len(tokens) < 12 for tokens in found.values()):
        message = group.receive()
        if isinstance(message, Token):
            found[message.request_id].append(message.token)
    assert found == expected
    assert group.await_state(lambda state: state.in_flight == 0).kv_used == 0
    assert_ends_with(group.worker, group.scheduler)


def test_a_prompt_handed_over_from_group_to_group(start, config, model):
    prefill = start(small_chunks(config, role="prefill"), "prefill")
    decode = start(small_chunks(config, role="decode"), "decode")
    prefill.await_ready()
    decode.await_ready()
    ids = prompt(107, 9)
    expected = greedy(model, ids, 10)
    source = Source(address=f"127.0.0.1:{prefill.port}", group="prefill")
    prefill.link.send(submit("r", ids, 10, role_hint="prefill"))
    decode.link.send(submit("r", ids, 10, role_hint="decode", source=source))
    assert prefill.tokens("r", 1) == expected[:1]
    assert decode.tokens("r", 10) == expected
    for group in (prefill, decode):
        idle = group.await_state(lambda state: state.in_flight == 0)
        assert (idle.kv_used, idle.transfers_in_flight, idle.kv_quarantined) == (0, 0, 0)
    assert_ends_with(prefill.scheduler, prefill.worker)


def test_a_chat_that_goes_on_computes_only_what_is_new(start, config, model):
    group = start(small_chunks(config), "both")
    group.await_ready()
    first = prompt(100, 3)
    answered = greedy(model, first, 30)
    second = (*first, *answered, *prompt(9, 4))
    for name, ids, count, cached in (
        ("new", first, 30, 0),
        ("again", first, 30, 96),
        ("goes-on", second, 10, 128),
    ):
        group.link.send(submit(name, ids, count))
        tokens = group.answer(name, count)
        assert tokens[0].cached_tokens == cached
        assert [token.token for token in tokens] == greedy(model, ids, count)
    idle = group.await_state(lambda state: state.in_flight == 0)
    assert (idle.kv_used, idle.prefix_hit_tokens, idle.prefix_query_tokens) == (0, 224, 339)


def test_a_chat_that_goes_on_is_handed_over_from_where_decode_has_it(start, config, model):
    prefill = start(small_chunks(config, role="prefill"), "prefill")
    decode = start(small_chunks(config, role="decode"), "decode")
    prefill.await_ready()
    decode.await_ready()
    source = Source(address=f"127.0.0.1:{prefill.port}", group="prefill")
    first = prompt(100, 9)
    second = (*first, *greedy(model, first, 30), *prompt(9, 4))
    for name, ids, cached, spared in (
        ("new", first, 0, 0),
        ("again", first, 96, 96),
        ("goes-on", second, 96, 96 + 128),  # P has the prompt alone, D the answer too
    ):
        prefill.link.send(submit(name, ids, 30, role_hint="prefill"))
        decode.link.send(submit(name, ids, 30, role_hint="decode", source=source))
        (token,) = prefill.answer(name, 1)
        expected = greedy(model, ids, 30)
        assert (token.token, token.cached_tokens) == (expected[0], cached)
        assert decode.tokens(name, 30) == expected
        idle = decode.await_state(lambda state: state.in_flight == 0)
        assert (idle.kv_used, idle.kv_quarantined, idle.prefix_hit_tokens) == (0, 0, spared)
        prefill.await_state(lambda state: state.transfers_in_flight == 0 and not state.in_flight)
