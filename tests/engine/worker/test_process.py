"""A worker's process against the wire: it joins, executes in order, and says why it dies."""

import json
import time

import pytest
import torch
import zmq
from forked import child
from model_folder import Folder
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
from pds_engine.models.checkpoint import digest
from pds_engine.models.config_json import read_config
from pds_engine.models.loader import load
from pds_engine.wire import Authority, Hub
from pds_engine.worker.process import kv_format


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


LONG_ROPE = {
    "type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(("scaling", "digests"), [(None, 1), (LONG_ROPE, 2)])
def test_groups_pair_only_if_they_compute_with_the_same_factors(tmp_path, scaling, digests):
    """max_model_len chooses the factors of LongRoPE; other models pair whatever it is."""
    folder = Folder(tmp_path)
    folder.configure(rope_scaling=scaling)
    formats = []
    for length in (16, 32, 33, 64):
        config = folder.engine(max_model_len=length)
        formats.append(kv_format(config, load(config, 0, torch.device("cpu"))))
    assert formats[0] == formats[1]
    assert formats[2] == formats[3]
    assert len({each.digest for each in formats}) == digests
    model = digest(folder.path, read_config(folder.path))
    assert (formats[0].digest == model) == (scaling is None)
