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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count, pairwise, product
from typing import Any

import pytest
from pds_engine.messages import State

pytestmark = pytest.mark.slow

Case = dict[str, Any]
CLOSE = 1e-4

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


def shape(case: Case) -> tuple[Any, ...]:
    """What a group is started with."""
    return tuple(value for axis, value in case.items() if axis != "scores")


def price(case: Case, started: bool) -> float:
    """About the seconds of processor time that it takes: starting processes is most of it."""
    return 1 if started else case["pp"] * case["tp"] + 4


def every(axes: Mapping[str, Sequence[Any]], such: Callable[[Case], bool]) -> list[Case]:
    cases = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [case for case in cases if such(case)]


def side_by_side(cases: Sequence[Case]) -> list[Case]:
    """In their order, but those of one shape after each other."""
    order = list(dict.fromkeys(map(shape, cases)))
    return sorted(cases, key=lambda case: order.index(shape(case)))


def covering(cases: Sequence[Case]) -> list[Case]:
    """Some of the cases, with every two values that occur together in any of them.

    Greedy: the case with the most new pairs for its price is next.
    """
    pairs = [frozenset(combinations(case.items(), 2)) for case in cases]
    bits = {pair: 1 << at for at, pair in enumerate(set().union(*pairs))}
    masks = [sum(bits[pair] for pair in of) for of in pairs]
    left, started, chosen = (1 << len(bits)) - 1, set[tuple[Any, ...]](), list[Case]()
    while left:
        worth = [
            (left & mask).bit_count() / price(case, shape(case) in started)
            for case, mask in zip(cases, masks, strict=True)
        ]
        best = worth.index(max(worth))
        chosen.append(cases[best])
        started.add(shape(cases[best]))
        left &= ~masks[best]
    return side_by_side(chosen)


def sample(size: int, seed: int) -> list[Case]:
    print(f"{size} cases of the full matrix: PDS_PARITY_SAMPLE={size} PDS_PARITY_SEED={seed}")
    return side_by_side(random.Random(seed).sample(every(AXES, possible), size))


SIZE = int(os.environ.get("PDS_PARITY_SAMPLE", 0))
SEED = int(os.environ.get("PDS_PARITY_SEED", random.randrange(10**6)))
CASES = sample(SIZE, SEED) if SIZE else covering(every(AXES, possible))


def test_every_two_values_occur_together():
    def pairs(cases):
        return {pair for case in cases for pair in combinations(case.items(), 2)}

    found = covering(every(AXES, possible))
    assert pairs(found) == pairs(every(AXES, possible))
    assert (("chunk", 16), ("skip", False)) in pairs(found)
    assert (("pp", 4), ("tp", 2)) in pairs(found)
    assert len(found) <= 40
    assert found == covering(every(AXES, possible))


def test_cases_of_one_group_run_after_each_other():
    found = [shape(case) for case in covering(every(AXES, possible))]
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


def assert_scores(sent, row, chosen, count):
    """An engine's scores of one place are those of transformers: the token's, and the best."""
    assert sent.chosen == pytest.approx(row[chosen].item(), abs=CLOSE)
    values = [value for _, value in sent.top]
    assert values == pytest.approx(row.topk(count).values.tolist(), abs=CLOSE)
    assert values == pytest.approx([row[token].item() for token, _ in sent.top], abs=CLOSE)


def compare(asked, sent, logprobs) -> int:
    """One answer with transformers; how many ties there were."""
    ids, options = asked.prompt_ids, asked.sampling
    tokens = [token.token for token in sent]
    assert len(tokens) == options.max_tokens
    table = logprobs((*ids, *tokens))
    ties = 0
    for row, token in zip(table[len(ids) - 1 :], sent, strict=False):
        if options.temperature == 0:
            best = row.topk(2).values
            assert row[token.token] > best[0] - CLOSE, (asked.request_id, token.index)
            ties += int(best[0] - best[1] < CLOSE)
        if options.logprobs is None:
            assert token.logprobs is None
        else:
            assert_scores(token.logprobs, row, token.token, options.logprobs)
    first, *others = sent
    assert not any(token.prompt_logprobs for token in others)
    asks = options.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == (len(ids) - 1 if asks else 0)
    for scores, row, token in zip(first.prompt_logprobs, table, ids[1:], strict=False):
        assert_scores(scores, row, token, options.prompt_logprobs)
    return ties


def name(case: Case) -> str:
    return "-".join(f"{axis}{value}" for axis, value in case.items())


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
