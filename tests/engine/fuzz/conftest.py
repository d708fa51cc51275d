"""A real engine of the tiny model, and a router before it: two processes that requests come to."""

import subprocess
from collections.abc import Iterator

import pytest
from real_processes import ENGINE, MODEL, ROUTER, ServingProcess
from waiting import wait_until

OPTIONS = (
    "http.metrics_port=0", "http.control_port=0", "http.rendezvous_port=0",
    "kv.port_base=0", "kv.backends=[tcp]", "max_model_len=64",
)  # fmt: skip
"""So short a context bounds the time of every case."""


def well(process: ServingProcess) -> None:
    """It lives, answers, and has logged no exception."""
    assert process.answers("/healthz"), process.log.read_text()
    said = process.log.read_text()
    assert "Traceback" not in said, said[said.index("Traceback") :][:4000]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServingProcess]]:
    """By name: the engine, and the router before it."""
    folder = tmp_path_factory.mktemp("fuzz")
    begun: dict[str, ServingProcess] = {}
    try:
        words = [word for option in OPTIONS for word in ("--set", option)]
        model = ("--model", str(MODEL), "--dtype", "float32")
        engine = begun["engine"] = ServingProcess(
            folder, "engine", *ENGINE, "serve", *model, *words
        )
        wait_until(engine.answers, 120)
        backend = ("--backend", engine.url, "--metrics-port", "0", "--model", "tiny")
        router = begun["router"] = ServingProcess(folder, "router", *ROUTER, *backend)
        wait_until(lambda: router.answers("/tokenizer_info"), 60)
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
def asked(
    request: pytest.FixtureRequest, processes: dict[str, ServingProcess]
) -> Iterator[ServingProcess]:
    """The process that a test asks; both must be well behind the test."""
    yield processes[request.param]
    for process in processes.values():
        well(process)
