"""Sampling from a vocabulary that is split over ranks: the same tokens as from the whole one."""

import itertools
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from pds_engine.messages import Admit, Sampling, TokenLogprobs
from pds_engine.parallel.collectives import ALONE, Collectives, VocabShard
from pds_engine.runner.batch import Batch
from pds_engine.runner.result import Result
from pds_engine.runner.sampling import kernel, logprobs, sample
from pds_engine.runner.tables import HostSlot, Tables
from pds_kernels.sampler import Draws

T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("each_sampler")
VOCAB = 1003
"""Four ranks have 251, 251, 251 and 250 of it."""


Chosen = tuple[list[int], tuple[TokenLogprobs | None, ...]]
"""Tokens, and their log-probabilities."""


class Counting(Collectives):
    """Counts the elements that this rank gives to gathers."""

    gathered = 0

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        self.gathered += x.numel()
        return super().gather(x)


def on_ranks(size: int, work: Callable[[Counting], T], kind: type[Counting] = Counting) -> list[T]:
    """`work` on `size` ranks that are threads; they speak gloo all the same."""
    store, found = dist.HashStore(), dict[int, T]()

    def rank(at: int) -> None:
        group = dist.ProcessGroupGloo(store, at, size, timedelta(seconds=30))
        found[at] = work(kind(group, at, size))

    threads = [threading.Thread(target=rank, args=(at,)) for at in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[at] for at in range(size)]


def columns(logits: torch.Tensor, ranks: Collectives) -> tuple[torch.Tensor, VocabShard]:
    """What this rank has of `logits`, padding included."""
    each = -(-logits.shape[1] // ranks.size)
    ids = range(logits.shape[1])[ranks.rank * each : (ranks.rank + 1) * each]
    own = torch.full((len(logits), each), float("-inf"))
    own[:, : len(ids)] = logits[:, ids.start : ids.stop]
    return own, VocabShard(ids, logits.shape[1], ranks)


def chosen(
    logits: torch.Tensor, kinds: list[Sampling], ranks: Collectives, index: int = 3
) -> Chosen:
    """The tokens and log-probabilities that this rank finds."""
    tables = Tables(len(kinds), 4, 16, logits.shape[1], 0, torch.device("cpu"))
    rows = []
    for at, kind in enumerate(kinds):
        prompt, output = (at, at + 1, at + 1), (at + 2, 500, 500)
        tables.admit(
            Admit(
                slot=at, gen=0, prompt_ids=prompt, output_ids=output, sampling=kind,
                seed=at * 7919, pages=(0,),
            )
        )  # fmt: skip
        rows.append((HostSlot(0, 3, prompt + output, kind, at * 7919), index))
    slots = torch.arange(len(kinds))
    own, shard = columns(logits, ranks)
    batch = Batch(slots, slots, None, slots, slots, tuple(rows))
    tokens = sample(own, batch, tables, shard, kernel(shard, own.device))
    result = Result(tokens, *logprobs(own, tokens, tuple(rows), shard))
    return tokens.tolist(), result.read(step_id=0, elapsed=0.0).logprobs


def grid() -> list[Sampling]:
    kinds = [
        Sampling(max_tokens=9, temperature=t, top_k=k, top_p=p, min_p=m, logprobs=3)
        for t, k, p, m in itertools.product(
            (0.0, 0.6, 1.4), (0, 1, 7, 400), (1.0, 0.95, 0.4, 0.0), (0.0, 0.02, 1.0)
        )
    ]
    extras: list[dict[str, Any]] = [
        {"logit_bias": {0: 3.0, 250: 9.0, 251: -5.0, 1002: 9.5, 5000: 1.0}},
        {"repetition_penalty": 1.7, "presence_penalty": 0.9, "frequency_penalty": -0.8},
        {"stop_token_ids": (3, 250, 251, 1002, 4000), "min_tokens": 9},
    ]
    for extra, t, p in itertools.product(extras, (0.0, 0.9), (1.0, 0.7)):
        kinds.append(Sampling(max_tokens=9, temperature=t, top_p=p, **extra))
    return kinds


def scores(rows: int) -> torch.Tensor:
    """Peaked and flat rows, many ties among them."""
    torch.manual_seed(5)
    width = torch.linspace(0.3, 4, rows).unsqueeze(1)[torch.randperm(rows)]
    return (torch.randn(rows, VOCAB) * width * 8).round() / 8


@pytest.mark.parametrize("size", [2, 4])
def test_the_layout_changes_no_token(size):
    kinds = grid()
    logits = scores(len(kinds))
    tokens, chances = chosen(logits, kinds, ALONE)
    assert len(set(tokens)) > 80
    for found, likely in on_ranks(size, lambda ranks: chosen(logits, kinds, ranks)):
        assert found == tokens
        for ours, theirs in zip(likely, chances, strict=True):
            if theirs is None:
                assert ours is None
                continue
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-9)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
            assert [x for _, x in ours.top] == pytest.approx([x for _, x in theirs.top], abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("size", [1, 4])
def test_one_score_that_is_no_number_leaves_nothing_to_choose(value, size):
    """Every rank says so, though it is in one's share."""
    kinds = grid()
    logits = scores(len(kinds))
    logits[::2, 700] = value
    for tokens, _ in on_ranks(size, lambda ranks: chosen(logits, kinds, ranks)):
        assert [token < 0 for token in tokens] == [at % 2 == 0 for at in range(len(kinds))]


def plainly(logits: list[float], kind: Sampling, noise: list[float]) -> int:
    """The definition, token by token."""
    if kind.temperature < 1e-5:
        return logits.index(max(logits))
    # Rounded to float32 where the engine rounds: ties must stay ties.
    tempered = (torch.tensor(logits) / kind.temperature).tolist()
    order = sorted(range(len(tempered)), key=lambda token: (-tempered[token], token))
    best = tempered[order[0]]
    if kind.min_p:
        least = float(torch.tensor(best) + torch.tensor(kind.min_p).log())
        order = [token for token in order if tempered[token] >= least]
    order = order[: kind.top_k or len(order)]
    weights = [math.exp(tempered[token] - best) for token in order]
    kept, before = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if not kept or before / sum(weights) < kind.top_p:
            kept.append(token)
        before += weight
    return max(kept, key=lambda token: tempered[token] + noise[token])


def test_the_tokens_are_those_of_the_definition():
    kinds = [kind for kind in grid() if not kind.logit_bias and not kind.min_tokens]
    kinds = [kind for kind in kinds if kind.repetition_penalty == 1]
    logits = scores(len(kinds))
    tokens, _ = chosen(logits, kinds, ALONE)
    for at, (kind, token) in enumerate(zip(kinds, tokens, strict=True)):
        noise = Draws.of([at * 7919], [0], [3], torch.device("cpu")).gumbel(range(VOCAB))[0]
        assert token == plainly(logits[at].tolist(), kind, noise.tolist()), kind


@pytest.mark.parametrize(
    ("kind", "flat", "elements"),
    [
        ({"temperature": 0.0}, True, 2),  # a value and an id
        ({}, True, 2),
        ({"min_p": 0.1}, True, 3),  # and the best score
        ({"top_k": 50}, True, 251),  # a shard's candidates: as many as it has, 256 at most
        ({"top_p": 0.9}, False, 252),  # and its sum
        ({"top_p": 0.9}, True, 252 + 251),  # they do not reach p: all scores
        ({"top_k": 300}, False, 252 + 251),
    ],
)
def test_what_ranks_tell_each_other(kind, flat, elements):
    torch.manual_seed(1)
    logits = torch.randn(5, VOCAB) * (0.1 if flat else 5)
    kinds = [Sampling(max_tokens=9, **kind)] * 5

    def count(ranks: Counting) -> int:
        chosen(logits, kinds, ranks)
        return ranks.gathered

    assert on_ranks(4, count) == [5 * elements] * 4


def test_a_rank_may_have_no_token_at_all():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, 3.0]])  # of 4 ranks, the last has padding alone
    kinds = [Sampling(max_tokens=9, temperature=0.0, logprobs=9)]
    alone = chosen(logits, kinds, ALONE)
    assert alone[0] == [1]
    assert [token for token, _ in alone[1][0].top] == [1, 4, 3, 2, 0]
    for tokens, (likely,) in on_ranks(4, lambda ranks: chosen(logits, kinds, ranks)):
        assert tokens == [1]
        assert [token for token, _ in likely.top] == [1, 4, 3, 2, 0]
        assert likely.chosen == pytest.approx(alone[1][0].chosen)


class Misheard(Counting):
    """Rank 1 understands other numbers than were said."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        everyone = super().gather(x)
        return everyone.roll(1, dims=1) if self.rank else everyone


def test_rank_0_decides_where_ranks_would_disagree():
    """Rounding that differs between ranks, overdone: rank 1 mistakes a row for another."""
    torch.manual_seed(2)
    logits = torch.randn(20, VOCAB) * torch.linspace(0.1, 6, 20).unsqueeze(1)
    kinds = [Sampling(max_tokens=9, top_p=0.9)] * 20
    first, second = on_ranks(2, lambda ranks: chosen(logits, kinds, ranks)[0], Misheard)
    assert first == second
