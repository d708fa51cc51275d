"""Fake engines and a router in front of them, on real loopback sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from pds_engine.errors import Forbidden, WrongClock
from pds_engine.router.app import Router
from pds_engine.router.config import RouterConfig
from pds_engine.router.keyring import Keyring
from pds_engine.router.serve import Server, server
from pds_engine.server.headers import check
from scripted_kube import FakeApi
from waiting import stop_accepting, until

KEY = b"k" * 32
FAST = {"interval": 0.05, "start_interval": 0.02, "timeout": 0.5}


@dataclass
class SeenRequest:
    """A request that a fake engine got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class EngineStream:
    """The answering side of one exchange."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.gone = asyncio.Event()
        """The router has closed the connection."""
        self.dropped = False

    async def head(self, status: int = 200, kind: str = "text/event-stream", **more: str) -> None:
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in more.items())
        self.raw(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{extra}"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )
        await self._writer.drain()

    async def put(self, data: bytes) -> None:
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))
        with suppress(ConnectionError):
            await self._writer.drain()

    def end(self) -> None:
        self.raw(b"0\r\n\r\n")

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def drop(self) -> None:
        """Die: reset the connection in the middle of what it was saying."""
        self.dropped = True
        self._writer.transport.abort()

    async def json(self, status: int, body: Any, **more: str) -> None:
        await self.head(status, "application/json", **more)
        await self.put(json.dumps(body).encode())
        self.end()


Script = Callable[[SeenRequest, EngineStream], Awaitable[None]]


def error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


async def say_hello(seen: SeenRequest, stream: EngineStream) -> None:
    """A well-behaved engine of any role: three events, as its role has them."""
    role = seen.headers.get("x-pds-role", "unified")
    if not seen.json.get("stream"):
        if role == "prefill":
            await stream.head(200, "application/json")
            stream.end()
        else:
            await stream.json(200, {"id": seen.headers.get("x-pds-request-id"), "by": role})
        return
    await stream.head()
    if role in ("prefill", "unified"):
        await stream.put(b': pds 1 7\ndata: {"t":1}\n\n')
    if role in ("decode", "unified"):
        await stream.put(b': pds 1 8\ndata: {"t":2}\n\n')
        await stream.put(b"data: [DONE]\n\n")
    stream.end()


@dataclass
class FakeEngine:
    role: str
    kv: str = "kv-a"
    script: Script = say_hello
    state: dict[str, Any] = field(default_factory=dict)
    silent: bool = False
    """/pds/state gets no answer."""
    key: bytes | None = None
    """Checks signatures by it, as engines do."""
    ahead: float = 0.0
    """Seconds that its clock is ahead."""
    rude: bytes = b""
    """The answer of /pds/state, again and again until the router has had enough."""
    checks_state: bool = True
    """Not so in the release before."""
    refused: int = 0
    seen: list[SeenRequest] = field(default_factory=list)
    streams: list[EngineStream] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    async def start(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stopped = False
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._stopped = True
        await stop_accepting(self._server)
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[SeenRequest]:
        """Requests other than polls of its state."""
        return [seen for seen in self.seen if seen.path != "/pds/state"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # accepted while the end came
            writer.transport.abort()
            return
        self.connections += 1
        self._tasks.add(task := asyncio.current_task())  # type: ignore[arg-type]
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            first = b""
            while not writer.is_closing():
                seen = await read_request(reader, first)
                first = await self._answer(seen, reader, writer)
                if not first:
                    break
        self._tasks.discard(task)
        self._writers.discard(writer)
        writer.close()

    async def _answer(
        self, seen: SeenRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        self.seen.append(seen)
        stream = EngineStream(writer)
        if self.rude and seen.path == "/pds/state":
            while not writer.is_closing():
                writer.write(self.rude)
                await writer.drain()
            return b""
        if (refusal := self._refusal(seen)) is not None:
            self.refused += 1
            await stream.json(403, {"error": {"code": refusal.code}}, **_named(refusal))
            return await reader.read(1)
        if seen.path == "/pds/state":
            if not self.silent:
                await stream.json(200, self.answered_state())
            return await reader.read(1)
        self.streams.append(stream)
        watch = asyncio.create_task(reader.read(1))
        watch.add_done_callback(
            lambda task: task.cancelled() or task.exception() or stream.gone.set()
        )
        try:
            await self.script(seen, stream)
            return b"" if stream.dropped else await watch
        except ConnectionError:
            stream.gone.set()
            return b""
        finally:
            watch.cancel()

    def _refusal(self, seen: SeenRequest) -> Forbidden | None:
        if self.key is None or (seen.path == "/pds/state" and not self.checks_state):
            return None
        try:
            check(self.key, seen.method, seen.path, seen.headers, time.time() + self.ahead)
        except Forbidden as refusal:
            return refusal
        return None

    def answered_state(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "kv_fingerprint": self.kv,
            "revision": "r1",
            "incarnation": f"inc-{self.port}",
            "control": f"127.0.0.1:{self.port + 1}",
            "group": f"{self.role}-{self.port}",
            "draining": False,
            "max_model_len": 4096,
            "in_flight": 0,
            **self.state,
        }


def _named(refusal: Forbidden) -> dict[str, str]:
    headers = refusal.headers if isinstance(refusal, WrongClock) else {}
    return {name.replace("-", "_"): value for name, value in headers.items()}


async def read_request(reader: asyncio.StreamReader, first: bytes) -> SeenRequest:
    head = first + await reader.readuntil(b"\r\n\r\n")
    request, *lines = head.decode().split("\r\n")
    method, path, _ = request.split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    headers |= {
        k: line.split(": ", 1)[1] for line in lines if line for k in [line.split(":")[0].lower()]
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return SeenRequest(method, path, headers, body)


@dataclass
class Running:
    """A router that serves, and a client of it."""

    router: Router
    server: Server
    url: str
    http: aiohttp.ClientSession

    async def settled(self, count: int) -> None:
        """Wait until `count` backends are routable."""
        await until(
            lambda: sum(not self.router.fleet.reason(b) for b in self.router.fleet) == count
        )

    async def stream(self, **body: Any) -> bytes:
        async with self.http.post(
            "/v1/chat/completions", json={"messages": [], "stream": True, **body}
        ) as response:
            assert response.status == 200, await response.text()
            return await response.read()


Engines = Callable[..., Awaitable[FakeEngine]]
Routers = Callable[..., Awaitable[Running]]


@pytest.fixture
async def engine() -> AsyncIterator[Engines]:
    started: list[FakeEngine] = []

    async def start(role: str, **options: Any) -> FakeEngine:
        fake = FakeEngine(role, **options)
        await fake.start()
        started.append(fake)
        return fake

    yield start
    for fake in started:
        await fake.stop()


@pytest.fixture
async def router() -> AsyncIterator[Routers]:
    running: list[tuple[Running, asyncio.Task[None]]] = []

    async def start(
        *engines: FakeEngine, key: bytes | None = KEY, ready: int | None = None, **options: Any
    ) -> Running:
        health = {**FAST, **options.pop("health", {})}
        config = RouterConfig.model_validate(
            {"backends": [e.url for e in engines], "health": health, "port": 0, **options}
        )
        router = Router(config, Keyring(key) if key else None)
        await router.discovery.start()
        serving = server(router, "127.0.0.1", 0, 5)
        task = asyncio.create_task(serving.serve())
        await until(lambda: serving.started)
        url = f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
        one = Running(router, serving, url, aiohttp.ClientSession(url))
        running.append((one, task))
        await one.settled(len(engines) if ready is None else ready)
        return one

    yield start
    for one, task in running:
        await one.http.close()
        one.server.should_exit = True
        one.server.force_exit = True
        await task
        await one.router.close()


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    """A scripted API server."""
    server = FakeApi()
    await server.start()
    yield server
    await server.stop()
