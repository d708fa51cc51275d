"""Groups of several dp ranks answer as transformers does, token for token, whoever has the load.

Greedy, float32. `make unit` takes a slice with all pairs of values on groups of few ranks;
`make test-all` all pairs there are, and each dp × tp × pp × hand-over.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import pytest
from comparing_groups import compare
from pairwise import Case, Matrix, name, pairs
from real_group import handed_over

pytestmark = pytest.mark.slow

AXES: Mapping[str, Sequence[Any]] = {
    "dp": (1, 2, 4),
    "tp": (1, 2),
    "pp": (1, 2),
    "hand": ("none", "from", "to", "both"),
    "overlap": (True, False),
    "sync": ("host", "device"),
    "prefill": ("mixed", "separate"),
    "pages": (80, 16),  # the second has running requests preempted
    "delayer": (True, False),
    "load": ("spread", "skewed", "one"),
}
"""Of all but the last a group is made; the last one says which dp rank computes what.

hand: the group is unified; hands over to a single rank; gets prompts from one; gets them from a
group of two dp ranks.
"""
AMPLE, SCARCE = AXES["pages"]
CHEAP = {(2, 1, 1): ("none", "from", "to"), (2, 2, 1): ("from",), (2, 1, 2): ("to",)}
"""What the slice has: hand-overs by dp, tp, pp; and four dp ranks of each axis' first value.
dp 1 is test_parity.py's."""


def ranks_of(case: Case) -> int:
    return case["dp"] * case["tp"] * case["pp"]


def possible(case: Case) -> bool:
    """A group that hands over migrates instead of preempting, and role decode delays nothing. Of a
    single dp rank there is no load to share, nor rows to gather."""
    if case["dp"] == 1 and (case["load"], case["sync"]) != ("one", "host"):
        return False
    if case["hand"] != "none" and case["pages"] == SCARCE:
        return False
    return case["hand"] not in ("to", "both") or not case["delayer"]


def cheap(case: Case) -> bool:
    if case["dp"] == 4:
        return all(case[axis] == AXES[axis][0] for axis in AXES if axis not in ("dp", "load"))
    return case["hand"] in CHEAP.get((case["dp"], case["tp"], case["pp"]), ())


def shape(case: Case) -> tuple[Any, ...]:
    return tuple(value for axis, value in case.items() if axis != "load")


WHOLE = Matrix(AXES, possible, shape, ranks_of, wholly=("dp", "tp", "pp", "hand"))
SLICE = Matrix(AXES, lambda case: possible(case) and cheap(case), shape, ranks_of)
SEED = 18
"""With a choice of few ranks."""
FEW, MANY = SLICE.covering(SEED), WHOLE.covering()
CASES = [*FEW, *(pytest.param(case, marks=pytest.mark.soak) for case in MANY if case not in FEW)]


def test_the_slice_is_cheap_and_the_whole_is_whole():
    groups = {shape(case): case for case in FEW}.values()
    assert pairs(FEW) == pairs(SLICE.every())
    others = len({case["hand"] for case in groups} - {"none"})
    assert sum(map(ranks_of, groups)) + others <= 30
    assert pairs(MANY) == pairs(WHOLE.every())
    splits = {tuple(case[axis] for axis in ("dp", "tp", "pp", "hand")) for case in MANY}
    assert len(splits) == 3 * 2 * 2 * 4


LENGTHS = ((20, 60), (1, 60), (33, 60), (16, 60), (190, 8), (100, 8), (130, 6), (65, 12), (17, 12))
"""Prompts, and tokens of their answers: many chunks amid four that decode for long."""
ENOUGH = 16
"""Tokens of an answer where no pages are to run short."""

_numbers = count()


def bound(case: Case) -> list[int]:
    """The dp rank of each request. skewed: the long prompts are the last rank's, and each other one
    has a single short prompt; one: the last rank has all."""
    last = case["dp"] - 1
    if case["load"] == "spread":
        return [at % case["dp"] for at in range(len(LENGTHS))]
    ranks = [last] * len(LENGTHS)
    if case["load"] == "skewed":
        ranks[:last] = range(last)
    return ranks


def grouped(shaped, case, role):
    return shaped(
        role=role,
        parallelism__dp=case["dp"],
        parallelism__tp=case["tp"],
        parallelism__pp=case["pp"],
        kv__pages=case["pages"],
        scheduler__max_running=6,
        scheduler__chunk_size=32,
        scheduler__async_scheduling=case["overlap"],
        scheduler__chunked_prefill=case["prefill"],
        dp__sync_device=case["sync"],
        delayer__enabled=case["delayer"],
    )


ROLES = {"none": "unified", "from": "prefill", "to": "decode", "both": "decode"}
OTHER = {
    "from": {"role": "decode"},
    "to": {"role": "prefill"},
    "both": {"role": "prefill", "parallelism__dp": 2},
}


@pytest.mark.parametrize("case", CASES, ids=name)
def test_answers_are_those_of_transformers(lone, running, shaped, prompt, submit, logprobs, case):
    group = lone(grouped(shaped, case, ROLES[case["hand"]]))
    longest = max(size for _, size in LENGTHS) if case["pages"] == SCARCE else ENOUGH
    asked = [
        submit(f"r{next(_numbers)}", prompt(length, at), min(size, longest))
        for at, (length, size) in enumerate(LENGTHS)
    ]
    before = group.state.preemptions
    if case["hand"] == "none":
        found = group.collect(*asked, ranks=bound(case))
    else:
        other = running(shaped(kv__pages=AMPLE, **OTHER[case["hand"]]))
        theirs = [at % other.dp for at in range(len(asked))]
        if case["hand"] == "from":
            found = handed_over(group, other, asked, bound(case), theirs)
        else:
            found = handed_over(other, group, asked, theirs, bound(case))
        quiet(other)
    for each in asked:
        compare(each, found[each.request_id], logprobs)
    state = quiet(group)
    if case["pages"] == AMPLE:
        assert state.preemptions == before
    elif case["load"] == "one":
        assert state.preemptions > before


def quiet(group):
    """The state once nothing is left of any request."""
    state = group.await_state(
        lambda state: not (state.in_flight or state.transfers_in_flight or state.kv_used)
    )
    assert (state.kv_quarantined, state.queued_tokens) == (0, 0)
    return state
