"""Thousands of random arrivals, cancels, lost links, failed pushes and late results.

No page leaks, is freed twice, is held by two or written by a stranger; every request ends; no token
comes twice, and each is the one that the request's own tokens lead to.
"""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = {
    "pp": st.integers(1, 4),
    "tp": st.integers(1, 2),
    "seed": st.integers(0, 2**32),
    "mishaps": st.sampled_from([0.0, 1.0, 5.0]),
    "prefix_cache": st.booleans(),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_unified_group(world: Any, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), pair=False, fenced=True, **shape)
    life.live(events=500)
    life.end()


@pytest.mark.parametrize("fenced", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_pair(world: Any, fenced: bool, seed: int, **shape: Any) -> None:
    life = world(random.Random(seed), pair=True, fenced=fenced, **shape)
    life.live(events=800)
    life.end()
