"""The ranks' meeting: who does not come is named. (What the groups carry: worker/test_pipeline.)"""

import socket
from pathlib import Path

import pytest
import torch
from free import free_port
from pds_engine.config import EngineConfig
from pds_engine.errors import PortTaken, RankLost
from pds_engine.parallel.groups import Groups, assemble, backend

CPU = torch.device("cpu")


def config(pp: int) -> EngineConfig:
    return EngineConfig.model_validate(
        {"model": {"path": Path("/nowhere")}, "parallelism": {"pp": pp}, "join_timeout": 1}
    )


@pytest.fixture
def rendezvous() -> str:
    return f"127.0.0.1:{free_port()}"


def test_the_ranks_that_do_not_come_are_named(rendezvous: str) -> None:
    with pytest.raises(RankLost) as raised:
        assemble(config(3), 0, CPU, rendezvous)
    assert raised.value.message == (
        "rank 1 (stage 1), rank 2 (stage 2) did not come to the rendezvous in 1 s"
    )


def test_the_rank_that_opens_no_rendezvous_is_named(rendezvous: str) -> None:
    with pytest.raises(
        RankLost, match=f"rank 0 .stage 0. has not opened .* at {rendezvous} in 1 s"
    ):
        assemble(config(3), 1, CPU, rendezvous)


def test_a_rendezvous_whose_port_is_taken_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PortTaken, match=f"cannot listen on {address}, the port of the rendez"):
            assemble(config(3), 0, CPU, address)


def test_a_single_rank_meets_nobody() -> None:
    assert assemble(config(1), 0, CPU, "") == Groups()


def test_the_backend_follows_the_device() -> None:
    assert [backend(torch.device(name)) for name in ("cpu", "cuda")] == ["gloo", "nccl"]
