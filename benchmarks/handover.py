"""How long the hand-over of a prompt's KV pages takes from a prefill to a decode process.

    python benchmarks/handover.py [--quick] [--loopback | --pods VALUES]

Two processes, each as in a pod of its own: own network, process and IPC namespaces, joined by a
veth pair (needs root; else, or with --loopback, both on the loopback device). With --pods they run
in two pods of kubectl's current cluster, which mount this tree as the chart's values in the file
VALUES say (`python -m pds_cluster local-values` makes one). Pages are scattered
over the pools. `value`: ms, p50, from OpenTransfer to PushDone for a 512-token prompt on a model of
8 layers × 4 KV heads × 64 in bfloat16 (4 MiB), connections being warm, by the backend that the pair
chooses. `ratio`: GB/s of that backend over the other's, at 16 MiB. The backends take turns within
one run; `cpu_s_per_gb` is the processor time of both sides, which a busy machine does not distort.
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
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from common import doing
from common.pods import Place, real_pods
from pds_engine.config import KvConfig
from pds_engine.keys import Keys
from pds_engine.kv.layout import KvFormat, shard
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer import TransferThread
from pds_engine.kv.transfer.base import decode_offer
from pds_engine.kv.transfer.choose import choose
from pds_engine.messages import CloseTransfer, Expect, KvEndpoint, OpenTransfer, Push, PushDone
from pds_engine.ports import KvAddress

SIZES = {"64KiB": 1 << 16, "1MiB": 1 << 20, "16MiB": 16 << 20, "128MiB": 128 << 20}
PAGE_SIZE = 16
TOKENS = 512
SHAPES = {"tiny": (4, 2, 64), "8x4x64": (8, 4, 64)}
BLOCKS = (4, 4, 64)
"""Layers, KV heads, head_dim of pages of 64 KiB."""
BACKENDS = ("tcp", "nixl")
FIGURES = ("ms", "gbps", "cpu_s_per_gb")


# ---- one side: a process that obeys lines of JSON ------------------------------------------------


class Rank:
    """A pool and its transfer thread, rebuilt for every shape."""

    def __init__(self, host: str, key: bytes) -> None:
        made = Keys.make()
        self._keys = Keys(
            made.server_secret, made.server_public, made.client_secret, made.client_public, key
        )
        self._host = host
        self._events: queue.Queue[Any] = queue.Queue()
        self._thread: Any = None

    def build(self, shape: list[int], pages: int, backends: list[str]) -> str:
        """Returns the endpoint, in base64."""
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
        config = KvConfig.model_validate({"backends": backends})
        self._thread = TransferThread(
            self._pool, config, 0, KvAddress(self._host), self._events.put, self._keys
        )
        return base64.b64encode(msgspec.msgpack.encode(self._thread.endpoint())).decode()

    def fill(self) -> str:
        self._pool.data.view(torch.int16).random_()
        return "filled"

    def digest(self, pages: list[int]) -> int:
        """Of these pages, in this order: to compare both sides."""
        return zlib.crc32(self._pool.data[pages].view(torch.uint8).numpy().tobytes())

    def cpu(self) -> float:
        """Seconds of processor time of this process and its threads."""
        return time.process_time()

    def expect(self, names: list[str], pages: list[int]) -> int:
        for name in names:
            self._thread.expect(Expect(transfer=name, epoch=1, pages=tuple(pages)))
        return len(names)

    def push(self, peer: str, names: list[str], src: list[int], dst: list[int]) -> list[float]:
        """Seconds from OpenTransfer to PushDone, for each transfer in turn."""
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
    torch.set_num_threads(1)
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
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


# ---- two places ----------------------------------------------------------------------------------


@contextmanager
def namespaces(loopback: bool) -> Iterator[list[Place]]:
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
    """P and D, which offer the same backends."""

    def __init__(self, places: list[Place], backends: list[str]) -> None:
        key = os.urandom(32).hex()
        self._backends = backends
        self._prefill, self._decode = (Process(prefix, host, key) for prefix, host in places)
        self.cpu_seconds = 0.0
        """Of both sides, in the last call of `seconds`."""
        self._count = 0
        self._pages = 0
        self._ours = self._peer = ""

    def build(self, shape: tuple[int, int, int], pages: int) -> None:
        self._pages = pages
        self._ours = self._prefill("build", shape, pages, self._backends)
        self._prefill("fill")
        self._peer = self._decode("build", shape, pages, self._backends)

    def offers(self) -> list[dict[str, Any]]:
        """What P and what D offers."""
        return [
            {
                name: decode_offer(data)
                for name, data in msgspec.msgpack.decode(
                    base64.b64decode(text), type=KvEndpoint
                ).backends.items()
            }
            for text in (self._ours, self._peer)
        ]

    def seconds(self, pages: int, times: int) -> list[float]:
        """Of `times` hand-overs of `pages` scattered pages, after one that warms up; checked."""
        draw = random.Random(pages)
        src, dst = (draw.sample(range(self._pages), pages) for _ in range(2))
        names = [f"t{self._count + i}" for i in range(times + 1)]
        self._count += times + 1
        before = self._cpu()
        self._decode("expect", names, dst)
        seconds = self._prefill("push", self._peer, names, src, dst)
        self.cpu_seconds = self._cpu() - before
        if self._prefill("digest", src) != self._decode("digest", dst):
            raise SystemExit("the pages differ")
        return list(seconds[1:])

    def _cpu(self) -> float:
        """Seconds of processor time that both have used so far."""
        return float(self._prefill("cpu") + self._decode("cpu"))

    def end(self) -> None:
        self._prefill.end()
        self._decode.end()


def alternate(pairs: dict[str, Pair], pages: int, rounds: int, times: int) -> dict[str, Any]:
    """By backend: seconds of each hand-over, in turns, so that a busy machine is busy for all."""
    taken: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, pair in pairs.items():
            taken[name] += pair.seconds(pages, times)
    return taken


def _union(offers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: offer for each in offers for name, offer in each.items()}


def measure(places: list[Place], quick: bool) -> dict[str, Any]:
    """By backend: p50 in ms by shape, p50 GB/s by size, and processor seconds for a GB."""
    rounds = 3 if quick else 12
    found: dict[str, Any] = {name: {"ms": {}, "gbps": {}, "cpu_s_per_gb": 0.0} for name in BACKENDS}
    pairs: dict[str, Pair] = {}
    try:
        for name in BACKENDS:
            pairs[name] = Pair(places, [name])
        for shape_name, shape in SHAPES.items():
            for pair in pairs.values():
                pair.build(shape, 256)
            for name, taken in alternate(pairs, TOKENS // PAGE_SIZE, rounds, 20).items():
                found[name]["ms"][shape_name] = round(statistics.median(taken) * 1e3, 3)
        block = 2 * PAGE_SIZE * 2 * BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
        for pair in pairs.values():
            pair.build(BLOCKS, max(SIZES.values()) // block)
        for size_name, size in SIZES.items():
            times = max(2, min(20, (32 << 20) // size))
            for name, taken in alternate(pairs, size // block, rounds, times).items():
                rate = size / statistics.median(taken) / 1e9
                found[name]["gbps"][size_name] = round(rate, 3)
        for name, pair in pairs.items():
            count = len(pair.seconds((16 << 20) // block, 20)) + 1
            used = pair.cpu_seconds / (count * (16 << 20) / 1e9)
            found[name]["cpu_s_per_gb"] = round(used, 3)
        ours, theirs = zip(*(pair.offers() for pair in pairs.values()), strict=True)
        found["chosen"] = choose(_union(ours), _union(theirs))
    finally:
        for pair in pairs.values():
            pair.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    parser.add_argument("--loopback", action="store_true", help="no namespaces")
    parser.add_argument("--pods", type=Path, metavar="VALUES", help="in two pods")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with (
        doing("transfers between two processes", 300 if options.quick else 3600),
        real_pods(options.pods) if options.pods else namespaces(options.loopback) as places,
    ):
        found = measure(places, options.quick)
        apart = "pods" if options.pods else "network namespaces over veth"
        between = apart if places[0][0] else "loopback"
    print(json.dumps(report(found, between)))


def report(found: dict[str, Any], between: str) -> dict[str, Any]:
    """The figures as benchmarks print them."""
    best = found.pop("chosen")
    other = next(name for name in BACKENDS if name != best)
    return {
        "name": "handover",
        "value": found[best]["ms"]["8x4x64"],
        "unit": "ms",
        "better": "lower",
        "baseline": found[other]["ms"]["8x4x64"],
        "ratio": round(found[best]["gbps"]["16MiB"] / found[other]["gbps"]["16MiB"], 2),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "between": between,
        "chosen": best,
        **{key: {name: found[name][key] for name in BACKENDS} for key in FIGURES},
    }


if __name__ == "__main__":
    main()
