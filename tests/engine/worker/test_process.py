"""A worker's process against the wire: it joins, executes in order, and says why it dies."""

import json
import time

import pytest
import zmq
from forked import child
from pds_engine.errors import EXIT_CONFIG
from pds_engine.messages import (
    Admit,
    Assemble,
    Fault,
    Hello,
    Ready,
    Release,
    Row,
    Sampling,
    StepDone,
    StepPlan,
    Welcome,
)
from pds_engine.wire import Authority, Hub


class Scheduler:
    """A ROUTER and one worker process connected to it."""

    def __init__(self, config, keys, folder):
        keys.write(folder)
        (folder / "config.json").write_text(config.model_dump_json())
        self.context = zmq.Context()
        self.authority = Authority(self.context, keys)
        self.hub = Hub(self.context, "tcp://127.0.0.1:*", keys)
        self.worker = None
        self.reports = []
        """What the watchdog has reported, on its own connection."""
        address = f"tcp://127.0.0.1:{self.hub.port}"
        launch = {"incarnation": "here", "binds": [""], "schedulers": [address]}
        (folder / "launch.json").write_text(json.dumps(launch))
        self.process = child(folder / "log", "worker-0", folder)

    def receive(self, seconds=60.0):
        """The next message of the worker's own connection."""
        while True:
            if not self.hub.socket.poll(seconds * 1000):
                raise TimeoutError("the worker said nothing")
            identity, message = self.hub.receive()
            self.worker = self.worker or identity
            if identity == self.worker:
                return message
            self.reports.append(message)

    def send(self, message):
        self.hub.send(self.worker, message)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.hub.close()
        self.authority.close()
        self.context.term()


@pytest.fixture
def scheduler(config, keys, tmp_path):
    made = Scheduler(config, keys, tmp_path)
    yield made
    made.close()


def plan(step: int, *rows: Row) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=rows,
        expects_output=False,
        depends_on=-1,
        padded_tokens=sum(row.length for row in rows),
    )


@pytest.mark.slow
def test_a_worker_s_life(scheduler, config):
    assert scheduler.receive() == Hello(
        peer="worker", group=config.pod.group, incarnation="here", rank=0
    )
    scheduler.send(Welcome(incarnation="here"))
    scheduler.send(Assemble(rendezvous="127.0.0.1:1"))
    ready = scheduler.receive()
    assert isinstance(ready, Ready)
    assert ready.pages == config.kv.pages
    assert ready.endpoint.rank == 0

    # Everything at once: the worker takes it in order, a freed slot's next request included.
    sampling = Sampling(max_tokens=3, temperature=0.0)
    for gen in (1, 2):
        scheduler.send(
            Admit(
                slot=0,
                gen=gen,
                prompt_ids=(5, 6, 7),
                output_ids=(),
                sampling=sampling,
                seed=0,
                pages=(gen,),
            )
        )
        first = 10 * gen
        scheduler.send(plan(first, Row(slot=0, gen=gen, start=0, length=3, samples=True)))
        scheduler.send(plan(first + 1, Row(slot=0, gen=gen, start=3, length=1, samples=True)))
        scheduler.send(Release(slot=0, gen=gen, after_step=first + 1))
    done = [scheduler.receive() for _ in range(4)]
    assert all(isinstance(one, StepDone) for one in done)
    assert [one.step_id for one in done] == [10, 11, 20, 21]
    assert [one.tokens for one in done[:2]] == [one.tokens for one in done[2:]]

    while not any(getattr(report, "done", -1) == 21 for report in scheduler.reports):
        if scheduler.hub.socket.poll(10_000):
            scheduler.reports.append(scheduler.hub.receive()[1])
    hello, *progress = scheduler.reports
    assert (hello.peer, hello.rank) == ("watch", 0)
    assert (progress[0].doing, progress[-1].doing) == ("setup", "idle")
    assert progress[-1].traffic.steps == 4
    assert progress[-1].plans[-1] == "step 21: 1 rows, 1 tokens, depends on -1"

    scheduler.send(plan(30, Row(slot=0, gen=2, start=4, length=1, samples=True)))
    fault = scheduler.receive()
    assert isinstance(fault, Fault)
    assert fault.code == "protocol_error"
    assert "slot 0 generation 2" in fault.message
    assert scheduler.process.wait(10) == 1


@pytest.mark.slow
def test_a_wrong_setting_ends_it_with_the_status_of_configuration(config, keys, tmp_path):
    wrong = config.model_copy(
        update={"model": config.model.model_copy(update={"path": tmp_path / "absent"})}
    )
    scheduler = Scheduler(wrong, keys, tmp_path)
    try:
        assert isinstance(scheduler.receive(), Hello)
        scheduler.send(Welcome(incarnation="here"))
        scheduler.send(Assemble(rendezvous="127.0.0.1:1"))
        begun = time.monotonic()
        assert scheduler.process.wait(30) == EXIT_CONFIG
        assert time.monotonic() - begun < 20
    finally:
        scheduler.close()
