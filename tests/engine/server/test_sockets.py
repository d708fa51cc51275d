"""The whole process: real uvicorn, real ZMQ with CURVE, clients unchanged."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import zmq
from free import free_port
from msgspec.structs import replace
from pds_engine import wire
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import Cancel, Drain, Hello, State, Submit, Token, Welcome
from pds_engine.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny"
TEXT = "Hello wörld 😀, how are you?"
SERVE = """
import sys, json
from pathlib import Path
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.server import app
folder = Path(sys.argv[1])
config = EngineConfig.model_validate_json((folder / "config.json").read_text())
app.run(config, Keys.read(folder), [sys.argv[2]], "inc")
"""


class EchoScheduler(threading.Thread):
    """Answers a request whose max_tokens is 99 never, and any other with TEXT."""

    def __init__(self, idle: State, keys: Keys) -> None:
        super().__init__(daemon=True)
        self.context = zmq.Context()
        self.authority = wire.Authority(self.context, keys)
        self.hub = wire.Hub(self.context, "tcp://127.0.0.1:*", keys)
        self.address = f"tcp://127.0.0.1:{self.hub.port}"
        self.ids = [*Tokenizer(TINY).encode(TEXT), 1]
        self.idle = idle
        self.open: set[str] = set()
        self.drained = threading.Event()
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            if self.hub.socket.poll(20):
                while (got := self.hub.receive()) is not None:
                    self.answer(*got)
        self.hub.close()
        self.authority.close()
        self.context.destroy(linger=0)

    def answer(self, who: bytes, message: object) -> None:
        match message:
            case Hello():
                self.hub.send(who, Welcome(incarnation="inc"))
            case Submit():
                self.open.add(message.request_id)
                never = message.sampling.max_tokens == 99
                for index, id in enumerate(self.ids[:2] if never else self.ids):
                    end = "stop" if index == len(self.ids) - 1 else None
                    name = message.request_id
                    token = Token(request_id=name, index=index, token=id, finish_reason=end)
                    self.hub.send(who, token)
                if not never:
                    self.open.discard(message.request_id)
            case Cancel():
                self.open.discard(message.request_id)
            case Drain():
                self.drained.set()
        draining = self.drained.is_set()
        self.hub.send(who, replace(self.idle, in_flight=len(self.open), draining=draining))

    def stop(self) -> None:
        self.stopping.set()
        self.join()


class ServerProcess:
    def __init__(self, folder: Path, address: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, str(folder), address],
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.child.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"not ready: {self.child.communicate(timeout=5)[1]}")

    def end(self) -> tuple[int, str]:
        """The exit status and what was said; one that does not end in time is killed."""
        try:
            said = self.child.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            self.child.kill()
            said = self.child.communicate()[1]
        return self.child.returncode, said


@pytest.fixture(scope="module")
def idle() -> State:
    return State(kv_total=8, ranks_ready=1, kv_fingerprint="f00d")


def start(folder: Path, idle: State) -> tuple[EchoScheduler, ServerProcess]:
    keys = Keys.make()
    keys.write(folder)
    port = free_port()
    config = EngineConfig.model_validate(
        {
            "model": {"name": "tiny", "path": TINY},
            "http": {"port": port, "metrics_port": 0, "max_body_bytes": 1 << 20},
        }
    )
    (folder / "config.json").write_text(config.model_dump_json())
    scheduler = EchoScheduler(idle, keys)
    scheduler.start()
    process = ServerProcess(folder, scheduler.address, port)
    process.wait_ready()
    return scheduler, process


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, idle: State
) -> Iterator[tuple[EchoScheduler, str]]:
    scheduler, process = start(tmp_path_factory.mktemp("keys"), idle)
    yield scheduler, process.url
    process.child.send_signal(signal.SIGTERM)
    status, said = process.end()
    scheduler.stop()
    assert status == 0, said
    assert scheduler.drained.is_set()


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_sdk_as_it_is(served: tuple[EchoScheduler, str], stream: bool):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        messages = [{"role": "user", "content": "hi"}]
        chat = client.chat.completions.create(model="tiny", messages=messages, stream=stream)
        text = client.completions.create(model="tiny", prompt="hi", stream=stream, max_tokens=50)
        if stream:
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chat)
            wrote = "".join(chunk.choices[0].text for chunk in text)
        else:
            said, wrote = chat.choices[0].message.content, text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(model="tiny", prompt="hi", temperature=9)
    assert said == wrote == TEXT


def in_flight_is(url: str, count: int) -> bool:
    """Whether /pds/state says so within a second and a half."""
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        if httpx.get(f"{url}/pds/state").json()["in_flight"] == count:
            return True
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_cancelled(served: tuple[EchoScheduler, str], stream: bool):
    body = json.dumps({"prompt": "hi", "max_tokens": 99, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    host, port = "127.0.0.1", int(served[1].rpartition(":")[2])
    with socket.create_connection((host, port)) as client:
        client.sendall(head + body)
        if stream:
            assert b"200 OK" in client.recv(4096)
        assert in_flight_is(served[1], 1)
    assert in_flight_is(served[1], 0)
    assert served[0].open == set()


def test_a_stream_is_written_as_it_comes(served: tuple[EchoScheduler, str]):
    body = {"prompt": "hi", "max_tokens": 99, "stream": True}
    with httpx.stream("POST", f"{served[1]}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
    assert first["choices"][0]["text"] == "Hello"  # of an answer that never ends
    assert in_flight_is(served[1], 0)


def test_ten_megabytes_are_refused(served: tuple[EchoScheduler, str]):
    answer = httpx.post(f"{served[1]}/v1/completions", content=b'"' + b"x" * 10_000_000)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_metrics(served: tuple[EchoScheduler, str]):
    httpx.post(f"{served[1]}/v1/completions", json={"prompt": "hi", "max_tokens": 50})
    text = httpx.get(f"{served[1]}/metrics").text
    line = 'pds_requests_total{route="/v1/completions",status="200"}'
    assert float(text.split(line)[1].split()[0]) >= 1
    for name in ("time_to_first_token_seconds_count", "inter_token_seconds_count", "kv_pages 8.0"):
        assert f"pds_{name}" in text


async def test_many_clients_at_once(served: tuple[EchoScheduler, str]):
    async with httpx.AsyncClient(timeout=30) as client:
        body = {"prompt": "hi", "max_tokens": 50, "n": 2}
        posts = [client.post(f"{served[1]}/v1/completions", json=body) for _ in range(32)]
        answers = await asyncio.gather(*posts)
    texts = [choice["text"] for answer in answers for choice in answer.json()["choices"]]
    assert texts == [TEXT] * 64


def test_a_dead_scheduler_ends_the_process(tmp_path: Path, idle: State):
    scheduler, process = start(tmp_path, idle)
    scheduler.stop()
    status, said = process.end()
    assert status != 0
    assert "GroupError" in said


def test_the_server_imports_no_torch():
    code = (
        "import sys, pds_engine.server.app;"
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
