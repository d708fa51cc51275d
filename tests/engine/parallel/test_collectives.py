"""Sums, everybody's tensors and rank 0's choice, between real processes."""

import os

import pytest
import torch
from pds_engine.errors import RankLost
from pds_engine.parallel.collectives import ALONE, Collectives


def every_call(collectives: Collectives) -> dict:
    rank, size = collectives.rank, collectives.size
    torch.manual_seed(rank)
    noise = collectives.all_reduce(torch.randn(1000))
    strided = torch.arange(6).view(2, 3).t() + 10 * rank
    halves = torch.tensor([1.5, -2.0], dtype=torch.bfloat16) * (rank + 1)
    written = torch.tensor([rank, 7 + rank])
    return {
        "sum": collectives.all_reduce(torch.tensor([1.0, float(rank)])).tolist(),
        "halves": collectives.all_reduce(halves).tolist(),
        "bits": noise.view(torch.int32).sum().item(),
        "strided": collectives.gather(strided).tolist(),
        "wide": collectives.gather(torch.tensor(1 << 60) + rank).tolist(),
        "empty": list(collectives.gather(torch.empty(3, 0)).shape),
        "choice": collectives.broadcast(written).tolist() == written.tolist() == [0, 7],
        "size": size,
    }


@pytest.mark.parametrize("size", [2, 4])
def test_every_call(size, ranks):
    found = ranks(every_call, size)
    numbers = range(size)
    total = sum(numbers)
    assert found[0] == {
        "sum": [size, total],
        "halves": [1.5 * (total + size), -2.0 * (total + size)],
        "bits": found[0]["bits"],
        "strided": [[[10 * r + i, 10 * r + i + 3] for i in range(3)] for r in numbers],
        "wide": [(1 << 60) + r for r in numbers],
        "empty": [size, 3, 0],
        "choice": True,
        "size": size,
    }
    assert all(other == found[0] for other in found[1:])


def left_alone(collectives: Collectives) -> str:
    collectives.gather(torch.zeros(1))
    if collectives.rank:
        os._exit(0)
    said = []
    for _ in range(3):  # the first may still find the other's socket open
        try:
            collectives.all_reduce(torch.zeros(1))
        except RankLost as error:
            said.append(error.message)
    return said[-1]


def test_a_rank_that_has_gone_is_told_at_once(ranks):
    said, gone = ranks(left_alone, 2)
    assert said.startswith("all_reduce failed at shard 0 of 2: ")
    assert gone is None


def test_alone_nothing_is_said():
    x = torch.tensor([1.0, 2.0])
    assert ALONE.all_reduce(x) is x
    assert ALONE.broadcast(x) is x
    assert ALONE.gather(x).tolist() == [[1.0, 2.0]]
