"""What the router adds to a request: milliseconds, and CPU microseconds per streamed event.

Fake engines (one process, events of a chat chunk's size) stand behind the router; the client is a
blocking socket. `value` is the p50 of a short PD stream through the router minus that of the same
stream direct, requests taken in turn. µs per event: CPU time of the router's process, over the
events of 16 paced streams, so that events do not merge on the way.

Beside it in the same run: a plain FastAPI StreamingResponse over aiohttp's iter_any, as routers in
Python mostly are; with --full also sglang-router, of the interpreter that `--peer` names.
"""

import argparse
import asyncio
import json
import os
import platform
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import doing

PEER_US, PEER_PD_MS, PLAIN_US = 31.0, 0.48, 38.0
"""sglang-router 0.3.2 and the plain relay, as measured once on one machine of 2 cores."""
STREAMS = 16
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"tiny","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
JOURNAL = b": pds 1 1234\n"
PATH = "/v1/chat/completions"


# ---- the engines: a process of its own -----------------------------------------------------------


class Engine(asyncio.Protocol):
    """Speaks just enough HTTP. The message says what is streamed: "<events> <pause in seconds>".

    (Not fields of our own: routers that parse and write the body anew drop them.)
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, found, rest = self.held.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        length = int(headers.get(b"content-length", 0))
        if len(rest) < length:
            return
        self.held = rest[length:]
        if b" HTTP/1.1" not in head:  # a router that tries other protocols first
            self.transport.close()
            return
        path = head.split(b" ", 2)[1].decode()
        if path == PATH:
            self.stream(json.loads(rest[:length]), headers)
        else:
            self.whole(
                {
                    "role": self.role,
                    "kv_fingerprint": "kv",
                    "control": "127.0.0.1:1",
                    "group": self.role,
                    "incarnation": "1",
                    "status": "ok",
                    "model_path": "tiny",
                    "data": [{"id": "tiny"}],
                }
            )

    def whole(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    def stream(self, body: dict, headers: dict[bytes, bytes]) -> None:
        ours = b"x-pds-role" in headers
        asked = body["messages"][0]["content"].split()
        events, pause = int(asked[0]), float(asked[1])
        if ours:
            events = {"prefill": 1, "decode": events - 1, "unified": events}[self.role]
        event = (JOURNAL if b"x-pds-journal" in headers else b"") + CHUNK
        self.frame = b"%x\r\n%b\r\n" % (len(event), event)
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self.next(events, pause)

    def next(self, left: int, pause: float) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(self.frame)
        if pause:
            asyncio.get_running_loop().call_later(pause, self.next, left - 1, pause)
        else:
            self.next(left - 1, pause)


async def engines(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for role, port in zip(("prefill", "decode", "unified"), ports, strict=True):
        await loop.create_server(lambda role=role: Engine(role), "127.0.0.1", port)
    await asyncio.Event().wait()


# ---- the plain relay -----------------------------------------------------------------------------


def plain(port: int, target: int) -> None:
    import aiohttp
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    sessions: list[aiohttp.ClientSession] = []

    @app.post(PATH)
    async def relay(request: Request) -> StreamingResponse:
        if not sessions:
            sessions.append(aiohttp.ClientSession())
        body = await request.body()
        upstream = await sessions[0].post(f"http://127.0.0.1:{target}{PATH}", data=body)
        return StreamingResponse(upstream.content.iter_any(), media_type="text/event-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


# ---- the client ----------------------------------------------------------------------------------


class Client:
    """One connection, kept."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stream(self, events: int, pause: float) -> int:
        """Ask, read to the end; returns the number of events seen."""
        message = {"role": "user", "content": f"{events} {pause}"}
        body = json.dumps({"model": "tiny", "messages": [message], "stream": True}).encode()
        self.socket.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)
        )
        seen, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = self.socket.recv(65536)
            # Else a peer that writes small pieces under Nagle's rule waits 40 ms for our ACK.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if not data:
                raise RuntimeError("the connection ended in mid-stream")
            seen += data.count(b"data: {")
            tail = (tail + data)[-5:]
        return seen

    def close(self) -> None:
        self.socket.close()


def interleaved(clients: dict[str, Client], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a short stream, by client, taken in turn so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(rounds):
        for name, client in clients.items():
            began = time.perf_counter()
            client.stream(5, 0.0)
            if turn >= rounds // 10:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def cpu_per_event(port: int, pid: int, events: int) -> float:
    """CPU microseconds of process `pid` per event, over STREAMS paced streams."""
    clients = [Client(port) for _ in range(STREAMS)]
    for client in clients:
        client.stream(2, 0.0)
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda c=c: counts.append(c.stream(events, 0.005))) for c in clients
    ]
    before = cpu_seconds(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = cpu_seconds(pid) - before
    for client in clients:
        client.close()
    return spent / sum(counts) * 1e6


def cpu_seconds(pid: int) -> float:
    """Time on a CPU of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


# ---- processes -----------------------------------------------------------------------------------


@contextmanager
def process(*command: str, ready: Callable[[], bool]) -> Iterator[int]:
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not ready():
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[:4]}: {log.read()[-2000:].decode()}")
                time.sleep(0.05)
            yield child.pid
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def streams(port: int) -> bool:
    """A stream goes through."""
    try:
        client = Client(port)
        client.socket.settimeout(2)
        return client.stream(2, 0.0) == 2
    except (OSError, RuntimeError):
        return False


def start_router(stack: ExitStack, backends: list[int], folder: Path) -> tuple[int, int]:
    (folder / "hmac.key").write_text(secrets.token_hex(32))
    (port,) = free_ports(1)
    config = folder / f"router-{port}.json"
    config.write_text(
        json.dumps(
            {
                "port": port,
                "metrics_port": None,
                "keys_dir": str(folder),
                "log_level": "error",
                "backends": [f"http://127.0.0.1:{backend}" for backend in backends],
            }
        )
    )
    command = (sys.executable, "-m", "pds_engine.router", "serve", "--config", str(config))
    return port, stack.enter_context(process(*command, ready=lambda: streams(port)))


def start_peer(stack: ExitStack, python: str, backends: list[int]) -> tuple[int, int]:
    port, bootstrap = free_ports(2)
    command = (
        python, "-m", "sglang_router.launch_router", "--pd-disaggregation",
        "--prefill", f"http://127.0.0.1:{backends[0]}", str(bootstrap),
        "--decode", f"http://127.0.0.1:{backends[1]}",
        "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--log-level", "error",
        "--prometheus-port", str(free_ports(1)[0]),
    )  # fmt: skip
    return port, stack.enter_context(process(*command, ready=lambda: streams(port)))


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--full", action="store_true", help="run sglang-router beside it")
    parser.add_argument(
        "--peer", default=sys.executable, help="an interpreter that has sglang-router"
    )
    parser.add_argument("--engines", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engines:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(engines(options.engines))
    elif options.plain:
        plain(*options.plain)
    else:
        with doing("streams through the router and beside it", 600 if options.quick else 3600):
            print(json.dumps(measure(options)))


def measure(options: argparse.Namespace) -> dict[str, object]:
    rounds, events, repeats = (300, 300, 3) if options.quick else (2000, 1000, 5)
    this = (sys.executable, os.path.abspath(__file__))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        p, d, u, plain_port = free_ports(4)
        stack.enter_context(
            process(*this, "--engines", str(p), str(d), str(u), ready=lambda: streams(u))
        )
        served: dict[str, tuple[int, int]] = {
            "pd": start_router(stack, [p, d], folder),
            "unified": start_router(stack, [u], folder),
        }
        command = (*this, "--plain", str(plain_port), str(u))
        plain_pid = stack.enter_context(process(*command, ready=lambda: streams(plain_port)))
        served["plain"] = (plain_port, plain_pid)
        if options.full:
            served["peer"] = start_peer(stack, options.peer, [p, d])
        clients = {"direct": Client(u)}
        clients |= {name: Client(port) for name, (port, _) in served.items()}
        times = interleaved(clients, rounds)
        p50 = {name: statistics.median(values) for name, values in times.items()}
        samples: dict[str, list[float]] = {name: [] for name in served}
        for _ in range(repeats):
            for name, (port, pid) in served.items():
                samples[name].append(cpu_per_event(port, pid, events))
        us = {name: min(values) for name, values in samples.items()}
        memory = resident_mb(served["pd"][1])
    return report(options, p50, us, memory)


def report(
    options: argparse.Namespace, p50: dict[str, float], us: dict[str, float], memory: float
) -> dict[str, object]:
    added = {name: round(ms - p50["direct"], 3) for name, ms in p50.items() if name != "direct"}
    # Not run here, the peer's figure is carried over to this machine by the plain relay's.
    peer_us = us.get("peer", PEER_US / PLAIN_US * us["plain"])
    return {
        "name": "router_overhead",
        "value": added["pd"],
        "unit": "ms",
        "better": "lower",
        "baseline": added.get("peer", PEER_PD_MS),
        "ratio": round(peer_us / us["pd"], 2),
        "machine": f"{platform.machine()} {os.cpu_count()} cores",
        "us_per_event": {name: round(value, 1) for name, value in us.items()},
        "added_ms": added,
        "direct_ms": round(p50["direct"], 3),
        "peer": "run beside" if options.full else "figures of another run, scaled by plain",
        "peer_us_per_event": round(peer_us, 1),
        "resident_mb": round(memory),
    }


if __name__ == "__main__":
    main()
