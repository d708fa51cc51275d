"""Real groups of any shape answer as transformers does, token for token (correctness.md).

In float32 a greedy answer has the likeliest token at each place, given its own tokens before:
so it is the one of transformers. Where the two likeliest differ by less than CLOSE, either will do;
such ties are counted. A seeded draw is compared with that of a single rank that computes each
prompt in one step.

By default the cases cover all pairs of values. PDS_PARITY_SAMPLE=n takes n cases at random from all
there are, by the seed that is printed, or by PDS_PARITY_SEED.
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest
from comparing_groups import compare
from pairwise import Case, Matrix, name, pairs
from pds_engine.messages import State

pytestmark = pytest.mark.slow

AXES: Mapping[str, Sequence[Any]] = {
    "pp": (1, 2, 4),
    "tp": (1, 2),
    "chunk": (16, 128, 256),  # the last one holds any prompt
    "overlap": (True, False),
    "skip": (None, True, False),
    "cache": (True, False),
    "prefill": ("mixed", "separate"),
    "pages": (80, 16),  # the second has running requests preempted
    "scores": ("none", "logprobs", "prompt_logprobs", "both"),
}
"""Of all but the last a group is made; the last one is asked by its requests."""


def possible(case: Case) -> bool:
    """A single stage has no outputs to skip."""
    return (case["pp"] == 1) == (case["skip"] is None)


MATRIX = Matrix(
    AXES,
    possible,
    shape=lambda case: tuple(value for axis, value in case.items() if axis != "scores"),
    price=lambda case: case["pp"] * case["tp"] + 3,
)
SIZE = int(os.environ.get("PDS_PARITY_SAMPLE", 0))
SEED = int(os.environ.get("PDS_PARITY_SEED", random.randrange(10**6)))
if SIZE:
    print(f"{SIZE} cases of the full matrix: PDS_PARITY_SAMPLE={SIZE} PDS_PARITY_SEED={SEED}")
CASES = MATRIX.sample(SIZE, SEED) if SIZE else MATRIX.covering()


def test_every_two_values_occur_together():
    found = MATRIX.covering()
    assert pairs(found) == pairs(MATRIX.every())
    assert (("chunk", 16), ("skip", False)) in pairs(found)
    assert (("pp", 4), ("tp", 2)) in pairs(found)
    assert len(found) <= 40
    assert found == MATRIX.covering()


def test_cases_of_one_group_run_after_each_other():
    found = list(map(MATRIX.shape, MATRIX.covering()))
    changes = sum(one != other for one, other in pairwise(found))
    assert changes == len(set(found)) - 1
    assert sum(each[0] * each[1] for each in set(found)) <= 36


LENGTHS = ((20, 60), (1, 60), (33, 60), (16, 60), (190, 8), (100, 8), (130, 6), (65, 12), (17, 12))
"""Prompts, and tokens of their answers: many chunks amid four that decode for long.

The four begin in 7 pages and end in 20, which is more than the fewer pages there are.
"""
ENOUGH = 24
"""Tokens of an answer where no pages are to run short."""

WARM = (
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.5, "top_k": 10, "frequency_penalty": 0.3},
    {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.5},
    {"temperature": 1.1, "top_p": 0.8, "top_k": 50, "logit_bias": {7: 2.0, 150: -3.0}},
)

ASKS: Mapping[str, dict[str, int]] = {
    "none": {},
    "logprobs": {"logprobs": 2},
    "prompt_logprobs": {"prompt_logprobs": 2},
    "both": {"logprobs": 0, "prompt_logprobs": 1},
}

_numbers = count()


@dataclass
class Tally:
    """What all cases together compared."""

    cases: int = 0
    prompts: int = 0
    tokens: int = 0
    ties: int = 0
    hits: int = 0
    preemptions: int = 0
    seen: dict[str, State] = field(default_factory=dict)
    """Each group's last state."""

    def spent(self, group) -> tuple[int, int]:
        """Tokens from the prefix cache, and preemptions, since this was last asked of the group.

        Nothing of the group's requests may be left.
        """
        state = group.await_state(lambda state: state.in_flight == 0 and state.kv_used == 0)
        assert (state.kv_quarantined, state.queued_tokens) == (0, 0)
        before = self.seen.get(group.name)
        self.seen[group.name] = state
        hits = state.prefix_hit_tokens - (before.prefix_hit_tokens if before else 0)
        preemptions = state.preemptions - (before.preemptions if before else 0)
        self.hits += hits
        self.preemptions += preemptions
        return hits, preemptions


@pytest.fixture(scope="module")
def tally():
    tally = Tally()
    yield tally
    print(
        f"\n{tally.cases} cases, {tally.prompts} prompts, {tally.tokens} tokens, {tally.ties} ties;"
        f" {tally.hits} tokens from prefix caches, {tally.preemptions} preemptions"
    )


def grouped(shaped, case):
    return shaped(
        parallelism__pp=case["pp"],
        parallelism__tp=case["tp"],
        pipeline__skip_output=case["skip"] is not False,
        kv__pages=case["pages"],
        scheduler__max_running=6,
        scheduler__chunk_size=case["chunk"],
        scheduler__async_scheduling=case["overlap"],
        scheduler__prefix_cache=case["cache"],
        scheduler__chunked_prefill=case["prefill"],
    )


def rounds(prompt, submit, asks, longest=ENOUGH):
    """Two batches of requests: greedy ones, and warm ones of the same prompts in another order.

    Every third one does not ask what the others do, so that a step holds both kinds.
    """
    greedy, warm = [], []
    for at, (length, size) in enumerate(LENGTHS):
        options = {} if at % 3 == 2 else asks
        kind = {**WARM[at % len(WARM)], **options}
        ids = prompt(length, at)
        greedy.append(submit(f"g{next(_numbers)}", ids, min(size, longest), options))
        warm.append(submit(f"w{next(_numbers)}", ids, min(size, 12), kind, seed=at))
    return greedy, warm[::-1]


@pytest.fixture(scope="module")
def draws(lone, shaped, prompt, submit):
    """The warm answers of one rank, each prompt in one step, step by step, without a cache."""
    plain = {axis: values[0] for axis, values in AXES.items()}
    plain |= {"chunk": 256, "overlap": False, "cache": False}
    _, warm = rounds(prompt, submit, {})
    found = lone(grouped(shaped, plain)).collect(*warm)
    return [[token.token for token in found[each.request_id]] for each in warm]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_answers_are_those_of_transformers(
    draws, lone, shaped, prompt, submit, logprobs, tally, case
):
    group = lone(grouped(shaped, case))
    ample = case["pages"] == AXES["pages"][0]
    longest = ENOUGH if ample else max(size for _, size in LENGTHS)
    greedy, warm = rounds(prompt, submit, ASKS[case["scores"]], longest)
    found = {**group.collect(*greedy), **group.collect(*warm)}
    tally.cases += 1
    for asked in (*greedy, *warm):
        sent = found[asked.request_id]
        tally.ties += compare(asked, sent, logprobs)
        tally.prompts += 1
        tally.tokens += len(sent)
    assert [[token.token for token in found[each.request_id]] for each in warm] == draws
    hits, preemptions = tally.spent(group)
    assert (preemptions > 0) != ample
    if ample:
        assert (hits > 0) == case["cache"]
