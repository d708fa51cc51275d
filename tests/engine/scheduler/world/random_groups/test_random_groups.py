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
from scheduling.groups import random_groups

RUNS = int(os.environ.get("PDS_LIVES", 20))
"""Of each kind of group; `make soak` has 300."""
SHAPES = {
    "pp": st.integers(1, 4),
    "tp": st.integers(1, 2),
    "seed": st.integers(0, 2**32),
    "mishaps": st.sampled_from([0.0, 1.0, 5.0]),
    "prefix_cache": st.booleans(),
    "window": st.sampled_from([None, 2, 7, 16]),
}


@settings(max_examples=RUNS, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_unified_group(seed: int, **shape: Any) -> None:
    groups = random_groups(random.Random(seed), pair=False, fenced=True, **shape)
    groups.run(events=500)
    groups.end()


SHORT_OF_PAGES: dict[str, Any] = {
    "prompt": 12,
    "output": 24,
    "max_running": 6,
    "max_step_tokens": 14,
    "max_waiting": 8,
}
"""Bounds under which running requests find no page to grow on: the longest needs nine."""


@settings(max_examples=RUNS, deadline=None, derandomize=True)
@given(
    **SHAPES,
    pages=st.integers(9, 13),
    chunked_prefill=st.sampled_from(["mixed", "separate"]),
    dynamic_chunks=st.booleans(),
)
def test_a_group_short_of_pages(seed: int, **shape: Any) -> None:
    groups = random_groups(random.Random(seed), pair=False, fenced=True, **shape, **SHORT_OF_PAGES)
    groups.run(events=500)
    groups.end()


def test_such_groups_do_run_short() -> None:
    """The runs above are of use only if many requests are preempted in them."""
    preempted = ended = 0
    for seed in range(10):
        rng, more = random.Random(seed), {"pages": 9, "mishaps": 0.0, **SHORT_OF_PAGES}
        groups = random_groups(rng, pair=False, pp=1 + seed % 4, tp=1, fenced=True, **more)
        groups.run(events=500)
        preempted += groups.nodes[0].core.ledger.preemptions
        ended += groups.nodes[0].ended
    assert ended > 200
    assert preempted > ended // 10


MIGRATING: dict[str, Any] = {
    **SHORT_OF_PAGES, "pair": True, "resumable": 0.8, "pages": 9, "prompt": 3, "output": 33
}  # fmt: skip
"""A decode group short of pages, whose requests mostly have a router that goes on with them."""


@pytest.mark.parametrize("fenced", [True, False])
@settings(max_examples=RUNS, deadline=None, derandomize=True)
@given(**SHAPES, pages=st.integers(9, 13))
def test_a_pair_short_of_pages(fenced: bool, seed: int, **shape: Any) -> None:
    groups = random_groups(random.Random(seed), fenced=fenced, **MIGRATING | shape)
    groups.run(events=800)
    groups.end()


def test_such_decode_groups_do_run_short() -> None:
    preempted = 0
    for seed in range(8):
        groups = random_groups(
            random.Random(seed), pp=1 + seed % 4, tp=1, fenced=True, mishaps=0.0, **MIGRATING
        )
        groups.run(events=1500)
        groups.end()
        preempted += groups.nodes[1].core.ledger.preemptions
    assert preempted > 5  # of about a hundred that decode at all


@pytest.mark.parametrize("fenced", [True, False])
@settings(max_examples=RUNS, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_pair(fenced: bool, seed: int, **shape: Any) -> None:
    groups = random_groups(random.Random(seed), pair=True, fenced=fenced, **shape)
    groups.run(events=800)
    groups.end()
