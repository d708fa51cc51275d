"""A real engine of the tiny model, and a router before it: two processes that requests come to."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from free import free_port

MODEL = Path(__file__).parents[3] / "examples" / "models" / "tiny"
ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()")
ROUTER = (sys.executable, "-m", "pds_engine.router", "serve")
OPTIONS = (
    "http.metrics_port=0", "http.control_port=0", "http.rendezvous_port=0",
    "kv.port_base=0", "kv.backends=[tcp]", "max_model_len=64",
)  # fmt: skip
"""So short a context bounds the time of every case."""


class Process:
    """One that serves HTTP; what it says goes to a file."""

    def __init__(self, folder: Path, name: str, *words: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "--port", str(self.port)],
                stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def answers(self, path: str, seconds: float) -> None:
        """Wait for a 200 there."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{path}: {self.log.read_text()}"
            try:
                if httpx.get(f"{self.url}{path}", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def well(self) -> None:
        """It lives, answers, and has logged no exception."""
        assert self.process.poll() is None, self.log.read_text()
        assert httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        said = self.log.read_text()
        assert "Traceback" not in said, said[said.index("Traceback") :][:4000]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """By name: the engine, and the router before it."""
    folder = tmp_path_factory.mktemp("fuzz")
    begun: dict[str, Process] = {}
    try:
        words = [word for option in OPTIONS for word in ("--set", option)]
        model = ("--model", str(MODEL), "--dtype", "float32")
        engine = begun["engine"] = Process(folder, "engine", *ENGINE, "serve", *model, *words)
        engine.answers("/readyz", 120)
        backend = ("--backend", engine.url, "--metrics-port", "0", "--model", "tiny")
        router = begun["router"] = Process(folder, "router", *ROUTER, *backend)
        router.answers("/tokenizer_info", 60)
        yield begun
    finally:
        for process in begun.values():
            process.process.terminate()
        for process in begun.values():
            try:
                process.process.wait(20)
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait()


@pytest.fixture(params=["engine", "router"])
def asked(request: pytest.FixtureRequest, processes: dict[str, Process]) -> Iterator[Process]:
    """The process that a test asks; both must be well behind the test."""
    yield processes[request.param]
    for process in processes.values():
        process.well()
