"""How long the hand-over of a prompt's KV pages takes from a prefill to a decode process.

    python benchmarks/handover.py [--quick] [--loopback]

Two processes, each as in a pod of its own: own network, process and IPC namespaces, joined by a
veth pair (needs root; else, or with --loopback, both on the loopback device). Pages are scattered
over the pools. `value`: ms, p50, from OpenTransfer to PushDone for a 512-token prompt on a model of
8 layers × 4 KV heads × 64 in bfloat16 (4 MiB), connections being warm, by the backend that the pair
chooses. `ratio`: GB/s of that backend over the other's, at 16 MiB.
"""

import argparse
import base64
import json
import os
import platform
import queue
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

SIZES = {"64KiB": 1 << 16, "1MiB": 1 << 20, "16MiB": 16 << 20, "128MiB": 128 << 20}
PAGE_SIZE = 16
TOKENS = 512
SHAPES = {"tiny": (4, 2, 64), "8x4x64": (8, 4, 64)}
BLOCKS = (4, 4, 64)
"""Layers, KV heads, head_dim of pages of 64 KiB."""
BACKENDS = ("tcp", "nixl")


# ---- one side: a process that obeys lines of JSON ------------------------------------------------


class Rank:
    """A pool and its transfer thread, rebuilt for every shape."""

    def __init__(self, host: str, key: bytes) -> None:
        from pds_engine.keys import Keys

        made = Keys.make()
        self._keys = Keys(
            made.server_secret, made.server_public, made.client_secret, made.client_public, key
        )
        self._host = host
        self._events: queue.Queue[Any] = queue.Queue()
        self._thread: Any = None

    def build(self, shape: list[int], pages: int, backends: list[str]) -> str:
        """Returns the endpoint, in base64."""
        from pds_engine.config import KvConfig
        from pds_engine.kv.layout import KvFormat, shard
        from pds_engine.kv.pool import KvPool
        from pds_engine.kv.transfer import TransferThread

        if self._thread is not None:
            self._thread.stop()
        layers, heads, dim = shape
        kv = KvFormat(
            digest="benchmark",
            dtype="bfloat16",
            page_size=PAGE_SIZE,
            layers=layers,
            kv_heads=heads,
            head_dim=dim,
        )
        self._pool = KvPool(kv, shard(kv, layers=(0, layers)), pages)
        config = KvConfig.model_validate({"backends": backends, "port_base": 0})
        self._thread = TransferThread(
            self._pool, config, 0, self._host, self._events.put, self._keys
        )
        return base64.b64encode(msgspec.msgpack.encode(self._thread.endpoint())).decode()

    def fill(self) -> str:
        import torch

        self._pool.data.view(torch.int16).random_()
        return "filled"

    def digest(self, pages: list[int]) -> int:
        """Of these pages, in this order: to compare both sides."""
        import torch

        return hash(self._pool.data[pages].view(torch.uint8).numpy().tobytes()[:: 1 << 6])

    def expect(self, names: list[str], pages: list[int]) -> int:
        from pds_engine.messages import Expect

        for name in names:
            self._thread.expect(Expect(transfer=name, epoch=1, pages=tuple(pages)))
        return len(names)

    def push(self, peer: str, names: list[str], src: list[int], dst: list[int]) -> list[float]:
        """Seconds from OpenTransfer to PushDone, for each transfer in turn."""
        from pds_engine.messages import CloseTransfer, KvEndpoint, OpenTransfer, Push, PushDone

        endpoint = msgspec.msgpack.decode(base64.b64decode(peer), type=KvEndpoint)
        seconds = []
        for name in names:
            begin = time.perf_counter()
            self._thread.open(OpenTransfer(transfer=name, epoch=1, peers=(endpoint,)))
            self._thread.push(
                Push(transfer=name, src_pages=tuple(src), dst_pages=tuple(dst), last=True)
            )
            event = self._events.get(timeout=60)
            seconds.append(time.perf_counter() - begin)
            if not isinstance(event, PushDone):
                raise SystemExit(f"{event}")
            self._thread.close(CloseTransfer(transfer=name))
            self._events.get(timeout=60)
        return seconds


def serve(host: str, key: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not answer for us
    rank = Rank(host, bytes.fromhex(key))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(rank, name)(*arguments)), file=answers, flush=True)


class Process:
    """The other end of `serve`."""

    def __init__(self, prefix: list[str], host: str, key: str) -> None:
        command = [*prefix, sys.executable, os.path.abspath(__file__), "--serve", host, key]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, name: str, *arguments: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SystemExit("no pipes")
        stdin.write(json.dumps([name, *arguments]) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit(f"the process ended in {name}")
        return json.loads(line)

    def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- two pods ------------------------------------------------------------------------------------


@contextmanager
def pods(loopback: bool) -> Iterator[list[tuple[list[str], str]]]:
    """Of two pods: how to start a process in it, and its address."""
    if loopback or os.geteuid() or not shutil.which("ip"):
        yield [([], "127.0.0.1")] * 2
        return
    names = [f"pdsh{os.getpid()}{side}" for side in "ab"]
    hosts = ["10.213.77.1", "10.213.77.2"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            "eth0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            names[1],
        )
        for name, host in zip(names, hosts, strict=True):
            _ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        apart = ["unshare", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        yield [
            (["ip", "netns", "exec", name, *apart], host)
            for name, host in zip(names, hosts, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


# ---- measuring -----------------------------------------------------------------------------------


class Pair:
    """P and D, for one backend or both."""

    def __init__(self, places: list[tuple[list[str], str]], backends: list[str]) -> None:
        key = os.urandom(32).hex()
        self._backends = backends
        self._prefill, self._decode = (Process(prefix, host, key) for prefix, host in places)
        self._count = 0

    def build(self, shape: tuple[int, int, int], pages: int) -> None:
        self._pages = pages
        self._prefill("build", shape, pages, self._backends)
        self._prefill("fill")
        self._peer = self._decode("build", shape, pages, self._backends)

    def seconds(self, pages: int, times: int) -> list[float]:
        """Of `times` hand-overs of `pages` scattered pages, after two that warm up; checked."""
        draw = random.Random(pages)
        src, dst = (draw.sample(range(self._pages), pages) for _ in range(2))
        names = [f"t{self._count + i}" for i in range(times + 2)]
        self._count += times + 2
        self._decode("expect", names, dst)
        seconds = self._prefill("push", self._peer, names, src, dst)
        if self._prefill("digest", src) != self._decode("digest", dst):
            raise SystemExit("the pages differ")
        return list(seconds[2:])

    def end(self) -> None:
        self._prefill.end()
        self._decode.end()


def measure(
    places: list[tuple[list[str], str]], backends: list[str], quick: bool
) -> dict[str, Any]:
    """p50 in ms by shape, and GB/s (p50) by size."""
    pair = Pair(places, backends)
    found: dict[str, Any] = {"ms": {}, "gbps": {}}
    try:
        for name, shape in SHAPES.items():
            pair.build(shape, 256)
            taken = pair.seconds(TOKENS // PAGE_SIZE, 40 if quick else 200)
            found["ms"][name] = round(statistics.median(taken) * 1e3, 3)
        block = 2 * PAGE_SIZE * 2 * BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
        pair.build(BLOCKS, max(SIZES.values()) // block)
        for name, size in SIZES.items():
            times = max(5, min(40, (256 << 20) // size)) * (1 if quick else 3)
            taken = pair.seconds(size // block, times)
            found["gbps"][name] = round(size / statistics.median(taken) / 1e9, 3)
    finally:
        pair.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    parser.add_argument("--loopback", action="store_true", help="no namespaces")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with pods(options.loopback) as places:
        by_backend = {name: measure(places, [name], options.quick) for name in BACKENDS}
        chosen = measure(places, list(BACKENDS), options.quick)
        between = "loopback" if not places[0][0] else "network namespaces over veth"
    gbps = {name: found["gbps"] for name, found in by_backend.items()}
    best = min(BACKENDS, key=lambda name: abs(gbps[name]["16MiB"] - chosen["gbps"]["16MiB"]))
    other = next(name for name in BACKENDS if name != best)
    print(
        json.dumps(
            {
                "name": "handover",
                "value": chosen["ms"]["8x4x64"],
                "unit": "ms",
                "better": "lower",
                "baseline": by_backend[other]["ms"]["8x4x64"],
                "ratio": round(gbps[best]["16MiB"] / gbps[other]["16MiB"], 2),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "between": between,
                "chosen": best,
                "ms": {name: found["ms"] for name, found in by_backend.items()},
                "gbps": gbps,
            }
        )
    )


if __name__ == "__main__":
    main()
