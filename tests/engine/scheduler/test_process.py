"""The scheduler as a process of its own, over real sockets with CURVE: joins, works, fails."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import pytest
import zmq
from free import free_port
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import (
    Admit,
    AnyMessage,
    Assemble,
    Fault,
    Hello,
    KvEndpoint,
    Message,
    Progress,
    Ready,
    Sampling,
    State,
    StepDone,
    StepPlan,
    Submit,
    Token,
    Traffic,
    Welcome,
)
from pds_engine.scheduler.process import run
from pds_engine.wire import Link

M = TypeVar("M", bound=Message)


@dataclass
class Running:
    """A scheduler process, and how to reach it."""

    process: BaseProcess
    address: str
    keys: Keys
    context: zmq.Context
    links: list[Link] = field(default_factory=list)

    def join(
        self, peer: str, incarnation: str = "now", keys: Keys | None = None, rank: int = 0
    ) -> Link:
        link = self.connect(keys or self.keys)
        link.send(Hello(peer=peer, group="local", incarnation=incarnation, rank=rank))
        return link

    def connect(self, keys: Keys) -> Link:
        link = Link(self.context, self.address, keys)
        self.links.append(link)
        return link


@contextmanager
def serving(**settings: Any) -> Iterator[Running]:
    keys, address = Keys.make(), f"tcp://127.0.0.1:{free_port()}"
    config = EngineConfig.model_validate({"pod": {"incarnation": "now"}, **settings})
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(config, keys, address, "now")
    )
    process.start()
    context = zmq.Context()
    running = Running(process, address, keys, context)
    try:
        yield running
    finally:
        for link in running.links:
            link.close()
        context.term()
        process.kill()
        process.join()
        process.close()


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as running:
        yield running


def await_message(link: Link, kind: type[M], such: Callable[[M], bool] = lambda _: True) -> M:
    """The next message of `kind` that fits; others are passed over."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        message: AnyMessage | None = link.receive(timeout=end - time.monotonic())
        if isinstance(message, kind) and such(message):
            return message
    pytest.fail(f"no {kind.__name__} came")


def ready(pages: int = 64) -> Ready:
    endpoint = KvEndpoint(rank=0, shard=b"", pages=pages, backends={})
    return Ready(rank=0, pages=pages, kv_fingerprint="f", endpoint=endpoint)


def test_a_request_from_submit_to_its_last_token(running: Running) -> None:
    server, worker = running.join("server"), running.join("worker")
    assert await_message(server, Welcome) == Welcome(incarnation="now")
    assert await_message(worker, Welcome) == Welcome(incarnation="now")
    assert await_message(worker, Assemble).rendezvous == "127.0.0.1:8090"
    worker.send(ready())
    assert await_message(server, State, lambda state: state.ranks_ready == 1).kv_total == 64

    server.send(
        Submit(request_id="r", prompt_ids=(1, 2, 3), sampling=Sampling(max_tokens=2), seed=0)
    )
    assert await_message(worker, Admit).prompt_ids == (1, 2, 3)
    assert await_message(worker, StepPlan).step_id == 0
    worker.send(StepDone(step_id=0, tokens=(7,), logprobs=(), elapsed=0.0))
    assert await_message(worker, StepPlan).rows[0].length == 1
    worker.send(StepDone(step_id=1, tokens=(8,), logprobs=(), elapsed=0.0))
    tokens = [await_message(server, Token), await_message(server, Token)]
    assert [(t.index, t.token, t.finish_reason) for t in tokens] == [
        (0, 7, None),
        (1, 8, "length"),
    ]
    idle = await_message(server, State, lambda state: state.in_flight == 0)
    assert (idle.kv_used, idle.steps_done) == (0, 2)


def test_a_fault_ends_the_process(running: Running) -> None:
    worker = running.join("worker")
    await_message(worker, Welcome)
    worker.send(Fault(rank=0, code="oom", message="no memory"))
    running.process.join(10)
    assert running.process.exitcode == 1


def test_a_lost_worker_ends_the_process(running: Running) -> None:
    worker = running.join("worker")
    await_message(worker, Welcome)
    worker.close()
    running.process.join(10)
    assert running.process.exitcode == 1


def test_a_lost_server_takes_its_requests_along(running: Running) -> None:
    worker, server, other = (running.join(peer) for peer in ("worker", "server", "server"))
    worker.send(ready())
    await_message(server, State, lambda state: state.ranks_ready == 1)
    server.send(Submit(request_id="r", prompt_ids=(1,), sampling=Sampling(max_tokens=9), seed=0))
    await_message(other, State, lambda state: state.in_flight == 1)
    server.close()
    await_message(other, State, lambda state: state.in_flight == 0)


def progress(rank: int) -> Progress:
    values = {"done": -1, "step": 0, "doing": "compute", "peer": -1, "seconds": 1.0, "mailbox": 0}
    return Progress(rank=rank, plans=(), traffic=Traffic(rank=rank, steps=rank + 5), **values)


def test_ranks_assemble_once_all_are_there() -> None:
    with serving(parallelism={"pp": 3}) as running:
        server = running.join("server")
        workers = [running.join("worker", rank=rank) for rank in (2, 0)]
        for worker in workers:
            await_message(worker, Welcome)
        assert workers[0].receive(0) is None
        workers.append(running.join("worker", rank=1))
        assert len({await_message(worker, Assemble).rendezvous for worker in workers}) == 1
        assert await_message(server, State).missing == (0, 1, 2)
        workers[1].send(ready())
        assert await_message(server, State, lambda state: state.ranks_ready == 1).missing == (1, 2)
        watch = running.join("watch", rank=2)
        await_message(watch, Welcome)
        watch.send(progress(2))
        assert await_message(server, State, lambda s: bool(s.traffic)).traffic[0].steps == 7
        watch.close()  # the worker's own connection decides whether it is there
        workers[2].close()
        running.process.join(10)
        assert running.process.exitcode == 1


def test_a_rank_that_does_not_join_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(parallelism={"pp": 3}, join_timeout=3) as running:
        for rank in (0, 2):
            await_message(running.join("worker", rank=rank), Welcome)
        running.process.join(10)
        assert running.process.exitcode == 1
    said = "rank 1 (stage 1) did not join in 3 s; 2 of 3 ranks are here"
    assert said in capfd.readouterr().err


def test_strangers_are_ignored(running: Running) -> None:
    stale = running.join("worker", incarnation="before")
    forger = running.join("server", keys=Keys.make())
    mute = running.connect(running.keys)
    mute.send(ready())
    server = running.join("server")
    assert await_message(server, State).ranks_ready == 0
    assert stale.receive(0) is None
    assert forger.receive(0) is None
    assert mute.receive(0) is None


def test_other_pods_hear_the_incarnation(running: Running) -> None:
    for peer in ("worker", "server"):
        assert await_message(running.join(peer, incarnation=""), Welcome).incarnation == "now"


def test_the_scheduler_imports_no_torch() -> None:
    code = "import pds_engine.scheduler.process, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
