"""Thousands of random arrivals, cancels, lost links, failed pushes and late results.

No page leaks, is freed twice, is held by two or written by a stranger; every request ends; no token
comes twice, and each is the one that the request's own tokens lead to.
"""

import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LIVES = int(os.environ.get("PDS_LIVES", 20))
"""Of each kind of group; `make soak` has 300."""
SHAPES = {
    "pp": st.integers(1, 4),
    "tp": st.integers(1, 2),
    "seed": st.integers(0, 2**32),
    "mishaps": st.sampled_from([0.0, 1.0, 5.0]),
    "prefix_cache": st.booleans(),
}


@settings(max_examples=LIVES, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_unified_group(world: Any, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), pair=False, fenced=True, **shape)
    life.live(events=500)
    life.end()


SHORT_OF_PAGES: dict[str, Any] = {
    "prompt": 12,
    "output": 24,
    "max_running": 6,
    "max_step_tokens": 14,
    "max_waiting": 8,
}
"""Bounds under which running requests find no page to grow on: the longest needs nine."""


@settings(max_examples=LIVES, deadline=None, derandomize=True)
@given(
    **SHAPES,
    pages=st.integers(9, 13),
    chunked_prefill=st.sampled_from(["mixed", "separate"]),
    dynamic_chunks=st.booleans(),
)
def test_a_group_short_of_pages(world: Any, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), pair=False, fenced=True, **shape, **SHORT_OF_PAGES)
    life.live(events=500)
    life.end()


def test_such_groups_do_run_short(world: Any) -> None:
    """The lives above are of use only if many requests are put back in them."""
    preempted = ended = 0
    for seed in range(10):
        rng, more = random.Random(seed), {"pages": 9, "mishaps": 0.0, **SHORT_OF_PAGES}
        life = world(rng, pair=False, pp=1 + seed % 4, tp=1, fenced=True, **more)
        life.live(events=500)
        preempted += life.nodes[0].core.ledger.preemptions
        ended += life.nodes[0].ended
    assert ended > 200
    assert preempted > ended // 10


PUT_OUT: dict[str, Any] = {
    **SHORT_OF_PAGES, "pair": True, "resumable": 0.8, "pages": 9, "prompt": 3, "output": 33
}  # fmt: skip
"""A decode group short of pages, whose requests mostly have a router that goes on with them."""


@pytest.mark.parametrize("fenced", [True, False])
@settings(max_examples=LIVES, deadline=None, derandomize=True)
@given(**SHAPES, pages=st.integers(9, 13))
def test_a_pair_short_of_pages(world: Any, fenced: bool, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), fenced=fenced, **PUT_OUT | shape)
    life.live(events=800)
    life.end()


def test_such_decode_groups_do_run_short(world: Any) -> None:
    put_out = 0
    for seed in range(8):
        life = world(
            random.Random(seed), pp=1 + seed % 4, tp=1, fenced=True, mishaps=0.0, **PUT_OUT
        )
        life.live(events=1500)
        life.end()
        put_out += life.nodes[1].core.ledger.preemptions
    assert put_out > 5  # of about a hundred that decode at all


@pytest.mark.parametrize("fenced", [True, False])
@settings(max_examples=LIVES, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_pair(world: Any, fenced: bool, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), pair=True, fenced=fenced, **shape)
    life.live(events=800)
    life.end()
