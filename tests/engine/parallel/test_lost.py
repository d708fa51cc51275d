"""Ranks behind the addresses in gloo's errors."""

import pytest
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.lost import named

GLOO = "gather failed at shard 0 of 4: [pair.cc:538] Read error [10.0.0.2]:5825: Connection reset"
PODS = ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2")


@pytest.mark.parametrize(
    ("rank", "pods", "numbering", "before"),
    [
        (0, ("10.0.0.1", "10.0.0.2"), Numbering(1, 2), "rank 1 (stage 0, dp rank 1) is gone: "),
        (0, ("10.0.0.1", "10.0.0.2"), Numbering(2), "rank 1 (stage 0) is gone: "),
        (1, PODS, Numbering(1, 4), "rank 2 (stage 0, dp rank 2) or rank 3 (stage 0, dp rank 3) is"),
        (3, PODS, Numbering(1, 4), ""),
        (0, ("127.0.0.1",) * 2, Numbering(1, 2), ""),
        (0, (), Numbering(1), ""),
    ],
)
def test_names(rank: int, pods: tuple[str, ...], numbering: Numbering, before: str) -> None:
    found = named(GLOO, pods, rank, numbering)
    assert found.startswith(before or GLOO)
    assert found.endswith(GLOO)


def test_words_without_an_address_stay() -> None:
    assert named("Application timeout", PODS, 0, Numbering(4)) == "Application timeout"
