"""Servers side by side: ours and vLLM's, unified or as a pair of prefill and decode."""

import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from common import doing, say
from common.servers import Server, free_port
from pds_engine.keys import Keys

from comparing.engines import Sizes, flags, vllm_arguments, vllm_environment
from comparing.machine import cpus
from comparing.peers import VLLM

ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()", "serve")
ROUTER = (sys.executable, "-m", "pds_engine.router", "serve", "--log-level", "error")
PROXY = (sys.executable, str(Path(__file__).with_name("proxy.py")))
START_SECONDS = 1800.0
READ = "vllm:nixl_bytes_transferred_sum"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server's processes run."""

    folder: Path
    """Its logs, keys and the like; removed by whoever made it."""
    on: tuple[int, ...]
    """CPUs."""

    @property
    def words(self) -> tuple[str, ...]:
        return ("taskset", "-c", ",".join(map(str, self.on)))


@contextmanager
def ours(model: Path, sizes: Sizes, folder: Path) -> Iterator[str]:
    """One unified engine; yields its URL."""
    with ExitStack() as stack:
        server = _engine(stack, model, sizes, Place(folder, tuple(cpus())), {"role": "unified"})
        _wait([server], "/readyz")
        yield server.url


@contextmanager
def ours_pair(model: Path, sizes: Sizes, folder: Path) -> Iterator[str]:
    """A prefill group and a decode group, a core each, and a router; yields the router's URL."""
    keys = folder / f"keys-{next(_numbers)}"
    keys.mkdir()
    Keys.make().write(keys)
    with ExitStack() as stack:
        engines = [
            _engine(
                stack, model, sizes, Place(folder, (cpu,)),
                {"role": role, "http.keys_dir": str(keys)},
            )
            for role, cpu in zip(("prefill", "decode"), _two(), strict=True)
        ]  # fmt: skip
        _wait(engines, "/readyz")
        backends = [word for engine in engines for word in ("--backend", engine.url)]
        metrics = ("--metrics-port", str(free_port()))
        words = (*ROUTER, "--keys-dir", str(keys), *metrics, *backends)
        router = Server(folder, f"router-{next(_numbers)}", *words)
        stack.callback(router.end)
        _wait([router], "/readyz")
        yield router.url


@contextmanager
def vllm(model: Path, sizes: Sizes, folder: Path) -> Iterator[str]:
    """One unified engine of vLLM's."""
    with ExitStack() as stack:
        server = _vllm(stack, model, sizes, Place(folder, tuple(cpus())), {})
        _wait([server], "/health")
        yield server.url


@contextmanager
def vllm_pair(model: Path, sizes: Sizes, folder: Path) -> Iterator[str]:
    """vLLM's prefill and decode with NIXL, a core each, and a proxy; yields the proxy's URL."""
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    with ExitStack() as stack:
        servers = [_vllm(stack, model, sizes, Place(folder, (cpu,)), transfer) for cpu in _two()]
        _wait(servers, "/health")
        words = (*PROXY, "--prefill", servers[0].url, "--decode", servers[1].url)
        proxy = Server(folder, f"proxy-{next(_numbers)}", *words)
        stack.callback(proxy.end)
        _wait([proxy], "/health")
        yield proxy.url
        found = httpx.get(servers[1].url + "/metrics", timeout=30, verify=False).text
        if not counted(found, READ):
            raise RuntimeError("vLLM's decode server has read no pages: it computes prompts anew")


def counted(metrics: str, name: str) -> float:
    """The sum of a metric over its labels, in Prometheus' text."""
    lines = [line.split() for line in metrics.splitlines() if line.startswith(name)]
    return sum(float(words[-1]) for words in lines)


def _two() -> tuple[int, int]:
    first, second, *_ = cpus() if len(cpus()) > 1 else cpus() * 2
    return first, second


def _engine(
    stack: ExitStack, model: Path, sizes: Sizes, place: Place, more: Mapping[str, str]
) -> Server:
    name = f"{more['role']}-{next(_numbers)}"
    settings = {
        **flags(model, sizes, len(place.on)),
        "model.name": "default",
        "pod.group": name,
        "http.metrics_port": 0,
        "http.control_port": 0,
        "http.rendezvous_port": 0,
        "kv.port_base": 0,
        "log_level": "warning",
        **more,
    }
    words = (f"--set={key}={json.dumps(value)}" for key, value in settings.items())
    threads = {"OMP_NUM_THREADS": str(len(place.on))}
    server = Server(place.folder, name, *place.words, *ENGINE, *words, more=threads)
    stack.callback(server.end)
    return server


def _vllm(
    stack: ExitStack, model: Path, sizes: Sizes, place: Place, transfer: Mapping[str, str]
) -> Server:
    # Its command asks for a package named vllm, which is not what the wheel for CPUs is called.
    words = [str(VLLM.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", "default", "--host", "127.0.0.1"]
    words.append("--disable-uvicorn-access-log")
    for key, value in vllm_arguments(sizes).items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{option}={value}")
    more = vllm_environment(place.on)
    if transfer:
        words += ["--kv-transfer-config", json.dumps(transfer)]
        port = str(free_port())
        more |= {"VLLM_NIXL_SIDE_CHANNEL_PORT": port, "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1"}
        more |= {"UCX_NET_DEVICES": "lo"}
    name = f"vllm-{next(_numbers)}"
    server = Server(place.folder, name, *place.words, *words, more=more)
    stack.callback(server.end)
    return server


def _wait(servers: list[Server], path: str) -> None:
    with doing(f"{', '.join(server.name for server in servers)}: ready", START_SECONDS):
        while not all(server.answers(path) for server in servers):
            time.sleep(0.1)


def keep_logs(folder: Path, target: Path) -> None:
    """Logs of a run that failed."""
    target.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, target)
    say(f"logs: {target}")
