"""What an exchange puts on the wire for a plan: peers, tags, buffers, and the mark of no tokens."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pds_engine.config import ParallelConfig
from pds_engine.errors import ProtocolError, RankLost
from pds_engine.messages import Row, StepPlan
from pds_engine.parallel import exchange
from pds_engine.parallel.exchange import INVALID, TAGS, DistributedExchange
from pds_engine.parallel.groups import Groups
from torch import Tensor


@dataclass
class Work:
    """A transfer of the fake network; a receive fills its buffer when it is waited for."""

    buffer: Tensor
    arrives: list[int] | None = None
    lost: bool = False

    def wait(self) -> bool:
        if self.lost:
            raise RuntimeError("Connection closed by peer")
        if self.arrives is not None:
            self.buffer.copy_(torch.tensor(self.arrives).view_as(self.buffer))
        return True


@dataclass
class Network:
    """Stands for torch.distributed."""

    arrives: list[int] | None = None
    lost: bool = False
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def isend(self, tensor: Tensor, peer: int, group: str, tag: int) -> Work:
        self.calls.append(("send", peer, group, tag, tensor.tolist()))
        return Work(tensor, lost=self.lost)

    def irecv(self, tensor: Tensor, peer: int, group: str, tag: int) -> Work:
        self.calls.append(("receive", peer, group, tag, tuple(tensor.shape)))
        return Work(tensor, self.arrives, self.lost)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(exchange.dist, "isend", made.isend)
    monkeypatch.setattr(exchange.dist, "irecv", made.irecv)
    return made


def of_rank(rank: int, dp: int = 1) -> DistributedExchange:
    """Of three stages of attention groups with two shards each."""
    groups: Any = Groups("hidden", "output", None)  # type: ignore[arg-type]
    split = ParallelConfig(pp=3, tp=2, dp=dp)
    cpu = torch.device("cpu")
    return DistributedExchange(
        groups, split, rank, rows=4, width=2, dtype=torch.float32, device=cpu
    )


def plan(step: int, *samples: bool, tokens: int = 0) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=tuple(
            Row(slot=n, gen=1, start=0, length=1, samples=each) for n, each in enumerate(samples)
        ),
        expects_output=True,
        depends_on=-1,
        padded_tokens=tokens or len(samples) + len(samples) % 2,
    )


def test_hidden_states_go_to_the_same_shard_of_the_next_stage(network: Network) -> None:
    middle, step = of_rank(3), TAGS + 7
    assert middle.receive_hidden(plan(step, True, tokens=6)).doing == "hidden"
    middle.send_hidden(plan(step, True), torch.tensor([[1.0, 2.0]])).wait()
    assert network.calls == [
        ("receive", 1, "hidden", 7, (3, 2)),
        ("send", 5, "hidden", 7, [[1.0, 2.0]]),
    ]
    assert (middle.counts.hidden_received, middle.counts.hidden_sent) == (1, 1)


def test_two_buffers_take_turns(network: Network) -> None:
    network.arrives = [1, 2]
    last = of_rank(4)
    found = [last.receive_hidden(plan(step, True)).wait().data_ptr() for step in range(4)]
    assert found[0] == found[2] != found[1] == found[3]


@pytest.mark.parametrize("shape", [(2, 2), (1, 3)])
def test_hidden_states_of_another_shape_are_not_sent(
    network: Network, shape: tuple[int, int]
) -> None:
    with pytest.raises(ProtocolError, match="hidden states of shape"):
        of_rank(0).send_hidden(plan(0, True), torch.zeros(shape))


def test_a_step_above_the_bound_is_not_received(network: Network) -> None:
    with pytest.raises(ProtocolError, match="step 0 has 5 tokens a rank, 4 is the most"):
        of_rank(2).receive_hidden(plan(0, True, tokens=10))


def test_tokens_that_cannot_be_shared_out_are_neither_sent_nor_received(network: Network) -> None:
    with pytest.raises(ProtocolError, match="padded to 3 tokens, which 2 ranks"):
        of_rank(2).receive_hidden(plan(0, True, tokens=3))
    with pytest.raises(ProtocolError, match="padded to 3 tokens, which 2 ranks"):
        of_rank(2).send_hidden(plan(0, True, tokens=3), torch.zeros(2, 2))
    assert network.calls == []


def test_outputs_go_from_the_last_stage_to_the_first(network: Network) -> None:
    of_rank(5).send_output(plan(3, True, False, True), (8, 9)).wait()
    network.arrives = [8, 9]
    assert of_rank(1).receive_output(plan(3, True, False, True)).wait() == (8, 9)
    assert network.calls == [
        ("send", 1, "output", 3, [8, 9]),
        ("receive", 5, "output", 3, (2,)),
    ]


def test_an_output_without_tokens_is_marked_and_discarded(network: Network) -> None:
    of_rank(4).send_output(plan(0, False), ()).wait()
    network.arrives = [INVALID]
    assert of_rank(0).receive_output(plan(0, False)).wait() == ()
    assert network.calls[0] == ("send", 0, "output", 0, [INVALID])


@pytest.mark.parametrize(("samples", "arrives"), [(True, [INVALID]), (False, [7])])
def test_an_invalid_token_never_gets_any_further(
    network: Network, samples: bool, arrives: list[int]
) -> None:
    network.arrives = arrives
    with pytest.raises(ProtocolError, match="step 0 samples"):
        of_rank(0).receive_output(plan(0, samples)).wait()


def test_a_lost_peer_is_named(network: Network) -> None:
    network.lost = True
    with pytest.raises(RankLost, match=r"rank 2 \(stage 1\) is lost, at step 6: Connection"):
        of_rank(4).receive_hidden(plan(6, True)).wait()


def test_neighbours_at_several_dp_ranks(network: Network) -> None:
    """Rank 7 of 12 is shard 1 of dp rank 1 in the second stage; so are 3 and 11 in the others."""
    of_rank(7, dp=2).receive_hidden(plan(0, True))
    of_rank(7, dp=2).send_hidden(plan(0, True), torch.zeros(1, 2))
    of_rank(11, dp=2).send_output(plan(0, True), (8,))
    of_rank(3, dp=2).receive_output(plan(0, True))
    assert [call[:3] for call in network.calls] == [
        ("receive", 3, "hidden"),
        ("send", 11, "hidden"),
        ("send", 3, "output"),
        ("receive", 11, "output"),
    ]
    network.lost = True
    with pytest.raises(RankLost, match=r"rank 3 \(stage 0, dp rank 1\) is lost, at step 6: "):
        of_rank(7, dp=2).receive_hidden(plan(6, True)).wait()


def test_an_idle_batch_without_tokens_is_a_message_of_no_rows(network: Network) -> None:
    of_rank(2, dp=2).send_hidden(plan(0), torch.zeros(0, 2))
    assert of_rank(6, dp=2).receive_hidden(plan(0)).buffer.shape == (0, 2)
    assert network.calls == [("send", 6, "hidden", 0, []), ("receive", 2, "hidden", 0, (0, 2))]
