"""The ranks' meeting: who does not come is named. (What the groups carry: worker/test_pipeline.)"""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from free import free_port
from pds_engine.config import EngineConfig
from pds_engine.errors import PortTaken, RankLost
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.groups import Groups, assemble, backend, make

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


def members(collectives: Collectives, **keys: dict) -> dict[str, list[int] | None]:
    """Which ranks each of this rank's groups has."""
    config = EngineConfig.model_validate({"model": {"path": Path("/nowhere")}, **keys})
    made = make(config, collectives.rank, CPU, timedelta(seconds=60))
    groups = {kind: getattr(made, kind) for kind in Groups.__slots__[:-1]}
    if made.sync is not None:
        assert made.sync is not made.stage
    return {
        kind: None if group is None else dist.get_process_group_ranks(group)
        for kind, group in groups.items()
    }


def table(found: list[dict], kind: str) -> list[list[int] | None]:
    return [each[kind] for each in found]


def test_groups_of_several_shards(ranks) -> None:
    found = ranks(members, 4, parallelism={"pp": 2, "tp": 2})
    assert table(found, "tp") == table(found, "stage") == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert table(found, "output") == table(found, "hidden") == [[0, 1, 2, 3]] * 4
    assert table(found, "sync") == [None] * 4


def test_groups_of_several_dp_ranks(ranks) -> None:
    split = {"tp": 2, "dp": 2}
    found = ranks(members, 4, parallelism=split, dp={"sync_device": "device"})
    assert table(found, "tp") == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert table(found, "stage") == [[0, 1, 2, 3]] * 4
    assert table(found, "sync") == [[0, 2], None, [0, 2], None]
    assert table(found, "hidden") == table(found, "output") == [None] * 4


def test_groups_of_dp_ranks_in_stages(ranks) -> None:
    split = {"pp": 2, "dp": 2}
    found = ranks(members, 4, parallelism=split, scheduler={"async_scheduling": False})
    assert table(found, "tp") == [None] * 4
    assert table(found, "stage") == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert table(found, "sync") == [[0, 1], [0, 1], None, None]
    assert table(found, "output") == [[0, 1, 2, 3]] * 4
