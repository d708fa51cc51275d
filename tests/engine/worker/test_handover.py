"""Two workers' loops in one process: what P computes chunk by chunk, D goes on from."""

import time

import pytest
import torch
import zmq
from pds_engine.errors import ProtocolError
from pds_engine.kv.transfer import TransferThread
from pds_engine.messages import (
    Admit,
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    OpenTransfer,
    Push,
    PushDone,
    Row,
    Sampling,
    StepDone,
    StepPlan,
    TransferClosed,
    Welcome,
)
from pds_engine.models.loader import load
from pds_engine.parallel.groups import Groups
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.ports import KvAddress
from pds_engine.runner.runner import Runner
from pds_engine.worker.firing import Firing
from pds_engine.worker.loop import Loop
from pds_engine.worker.mailbox import Mailbox
from pds_engine.worker.process import kv_format, make_exchange, make_pool
from pds_engine.worker.watchdog import Activity


class Sent:
    """Stands where the link to the scheduler is: orders in, reports out."""

    def __init__(self):
        self.orders, self.sent = [], []

    def send(self, message):
        self.sent.append(message)

    def receive(self):
        return self.orders.pop(0) if self.orders else None


class Rank:
    def __init__(self, config, keys, rank=0):
        cpu = torch.device("cpu")
        decoder = load(config, 0, cpu)
        _, self.pool = make_pool(config, decoder, kv_format(config, decoder), cpu)
        self.pool.data.fill_(float("nan"))
        self.pool.data[-1] = 0
        layers = [self.pool.layer(i) for i in range(len(decoder.part.layers))]
        self.mailbox = Mailbox()
        self.transfers = TransferThread(
            self.pool, config.kv, rank, KvAddress("127.0.0.1"), self.mailbox.put, keys
        )
        self.link = Sent()
        runner = Runner(config, decoder, layers)
        stage = Stage(StagePlace(0, 1), runner, make_exchange(config, decoder, Groups(), 0, cpu))
        self.loop = Loop(
            self.link,
            stage,
            runner,
            self.transfers,
            self.mailbox,
            Activity(rank),
            watch=Firing(self.mailbox.wake).watch,
        )

    def give(self, *orders):
        self.link.orders.extend(orders)
        self.loop.turn()

    def wait(self, kind, seconds=10.0):
        """The first report of that kind; the others before it are dropped."""
        deadline = time.monotonic() + seconds
        poller = zmq.Poller()
        poller.register(self.mailbox.descriptor, zmq.POLLIN)
        while True:
            while self.link.sent:
                report = self.link.sent.pop(0)
                if isinstance(report, kind):
                    return report
            left = deadline - time.monotonic()
            if left < 0 or not poller.poll(left * 1000):
                raise TimeoutError(f"no {kind.__name__}")
            self.loop.turn()

    def stop(self):
        self.transfers.stop()
        self.mailbox.close()


@pytest.fixture
def pair(config, keys):
    ranks = Rank(config, keys), Rank(config, keys)
    yield ranks
    for rank in ranks:
        rank.stop()


def plan(step, row, *pushes):
    return StepPlan(
        step_id=step,
        rows=(row,),
        expects_output=False,
        depends_on=-1,
        padded_tokens=row.length,
        pushes=pushes,
    )


def test_decode_goes_on_where_prefill_ended(pair, greedy, prompt):
    prefill, decode = pair
    prompt = prompt(70, 4)
    sampling = Sampling(max_tokens=4, temperature=0.0)
    here, there = (9, 3, 41, 22, 17), (50, 8, 30, 11, 2)

    decode.give(Expect(transfer="r", epoch=1, pages=there))
    request = Admit(
        slot=0,
        gen=1,
        prompt_ids=prompt,
        output_ids=(),
        sampling=sampling,
        seed=0,
        pages=here,
    )
    first, second, third = (
        Push(transfer="r", src_pages=here[a:b], dst_pages=there[a:b], last=b == 5)
        for a, b in ((0, 2), (2, 4), (4, 5))
    )
    peers = (decode.transfers.endpoint(),)
    prefill.give(
        request,
        OpenTransfer(transfer="r", epoch=1, peers=peers),
        plan(0, Row(slot=0, gen=1, start=0, length=32), first),
        plan(1, Row(slot=0, gen=1, start=32, length=32), second),
        plan(2, Row(slot=0, gen=1, start=64, length=6, samples=True), third),
    )
    done = [prefill.wait(StepDone) for _ in range(3)]
    assert [len(one.tokens) for one in done] == [0, 0, 1]
    assert prefill.wait(PushDone).bytes == 5 * prefill.pool.bytes_per_page
    prefill.give(CloseTransfer(transfer="r"))
    assert prefill.wait(TransferClosed).transfer == "r"

    decode.give(
        Forget(transfer="r", epoch=1),
        Admit(
            slot=2,
            gen=7,
            prompt_ids=prompt,
            output_ids=done[2].tokens,
            sampling=sampling,
            seed=0,
            pages=there,
        ),
        *(plan(s, Row(slot=2, gen=7, start=70 + s, length=1, samples=True)) for s in range(3)),
    )
    tokens = [decode.wait(StepDone).tokens[0] for _ in range(3)]
    assert [*done[2].tokens, *tokens] == greedy(prompt, 4)


def test_forget_is_answered(pair):
    _, decode = pair
    decode.give(Expect(transfer="r", epoch=1, pages=(1,)), Forget(transfer="r", epoch=1))
    assert decode.wait(Forgotten).fenced


def test_an_order_that_is_none_is_refused(pair):
    with pytest.raises(ProtocolError, match="does not take Welcome"):
        pair[0].give(Welcome(incarnation="x"))
