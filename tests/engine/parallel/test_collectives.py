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


SIZES = {
    2: [(3, 3), (4, 1), (0, 5), (0, 0)],
    4: [(2, 2, 2, 2), (1, 0, 7, 2), (0, 0, 0, 1), (0, 0, 0, 0)],
}


def whole(rank: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rows + rank)
    return torch.randn(rows, 2, 3, generator=generator).to(dtype)


def parts(collectives: Collectives) -> list[bool]:
    """Each call beside plain torch, to the last bit: even, uneven and empty parts."""
    rank, size = collectives.rank, collectives.size
    same = []
    for sizes in SIZES[size]:
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [whole(each, sum(sizes), dtype) for each in range(size)]
            cut = [tensor.split(sizes)[at] for at, tensor in enumerate(tensors)]
            gathered = collectives.gather_parts(cut[rank], sizes)
            same.append(torch.equal(gathered, torch.cat(cut)) and gathered.dtype == dtype)
            strided = torch.stack([cut[rank], cut[rank]], dim=1)[:, 0]
            same.append(torch.equal(collectives.gather_parts(strided, sizes), torch.cat(cut)))
            total = torch.stack(tensors).sum(0)
            own = collectives.reduce_scatter(tensors[rank], sizes)
            same.append(torch.equal(own, total.split(sizes)[rank]) and own.dtype == dtype)
    return same


@pytest.mark.parametrize("size", [2, 4])
def test_parts_even_uneven_and_empty(size, ranks):
    found = ranks(parts, size)
    assert found == [[True] * (6 * len(SIZES[size]))] * size


def test_a_sum_does_not_depend_on_how_its_parts_are_cut(ranks):
    assert ranks(sums, 4) == [True] * 4


def sums(collectives: Collectives) -> bool:
    x = whole(collectives.rank, 8, torch.float32)
    cuts = [(2, 2, 2, 2), (8, 0, 0, 0), (0, 1, 3, 4)]
    found = [collectives.gather_parts(collectives.reduce_scatter(x, c), c) for c in cuts]
    return all(torch.equal(each, found[0]) for each in found)


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
    assert ALONE.gather_parts(x, (2,)) is x
    assert ALONE.reduce_scatter(x, (2,)) is x
