"""The collective of a pass: what it brings, and what it costs; by gloo, and by NCCL on devices."""

import pytest
import torch
import torch.distributed as dist
from pds_engine.errors import RankLost
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.gather import RowGather

PASSES = 20


def gathered(collectives: Collectives, on: str) -> dict:
    """A few passes of rows that say where they are from."""
    rank, kind = collectives.rank, on.partition(" ")[0]
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    group = dist.new_group(backend="nccl" if kind == "cuda" else "gloo")
    rows = RowGather(group, device, on_device=on != "host")
    found = [rows.gather((at, 10 * rank, -1)).rows for at in range(PASSES)]
    return {
        "found": found,
        "costs": [rows.collectives, rows.fetches],
        **(watched(rows) if kind == "cuda" else {}),
    }


def watched(rows: RowGather) -> dict:
    """What the device itself has seen: copies to the host, and whether a gather waited for a step
    that was being computed."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for at in range(PASSES):
            rows.gather((at, 0, 0))
        torch.cuda.synchronize()
    copies = sum(each.count for each in profile.key_averages() if "DtoH" in each.key)
    step = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    step.record()
    rows.gather((0, 0, 0))
    return {"copies": copies, "computing": not step.query()}


def expected(size: int) -> list[list[int]]:
    return [[n for rank in range(size) for n in (at, 10 * rank, -1)] for at in range(PASSES)]


@pytest.mark.parametrize(("on", "fetches"), [("host", 0), ("cpu as a device", PASSES)])
@pytest.mark.parametrize("size", [2, 4])
def test_a_pass_is_one_collective_and_on_a_device_one_copy(ranks, size, on, fetches):
    for found in ranks(gathered, size, on=on):
        assert found == {"found": expected(size), "costs": [PASSES, fetches]}


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2])
def test_nccl_copies_once_a_pass_and_waits_for_no_step(ranks, size):
    """A rank a device: NCCL refuses two on one."""
    if (devices := torch.cuda.device_count()) < size:
        pytest.skip(f"NCCL among {size} ranks needs {size} CUDA devices, and there are {devices}")
    for found in ranks(gathered, size, on="cuda"):
        assert found["found"] == expected(size)
        assert found["costs"] == [PASSES, PASSES]
        assert (found["copies"], found["computing"]) == (PASSES, True)


class Gone:
    """A group of which a rank has ended."""

    def size(self):
        return 2

    def _allgather_base(self, output, input):
        raise RuntimeError("Connection closed by peer")


def test_a_rank_that_is_gone_is_an_error_of_the_group():
    with pytest.raises(RankLost, match="gather among dp ranks failed: Connection closed"):
        RowGather(Gone(), torch.device("cpu"), on_device=False).gather((1,))
