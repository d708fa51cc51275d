"""Every family gives what transformers gives, whole or split over ranks that are processes."""

import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.messages import Sampling
from pds_engine.models.registry import FAMILIES
from pds_engine.parallel.collectives import ALONE, Collectives
from runner_driver import Driver, Reference

LENGTHS = (1, 15, 16, 33, 130)
OUTPUT = 12
EVERY = 1000
"""More tokens than there are: `logprobs` then names all."""


def prompts() -> list[list[int]]:
    source = random.Random(4)
    return [[source.randrange(3, 320) for _ in range(length)] for length in LENGTHS]


def seeded() -> list[Sampling]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9},
        {"top_p": 0.9},
        {"top_k": 20, "temperature": 1.3},
        {"min_p": 0.02, "presence_penalty": 0.8, "repetition_penalty": 1.2},
        {"top_p": 0.99, "temperature": 3.0, "logit_bias": {5: 2.0, 319: 3.0}},
    ]
    return [Sampling(max_tokens=OUTPUT, **kind) for kind in kinds]


def answers(collectives: Collectives, paths: dict[str, str]) -> dict[str, Any]:
    """Per family: greedy tokens, the log-probability of every token at each, and seeded tokens."""
    greedy = Sampling(max_tokens=OUTPUT, temperature=0.0, logprobs=EVERY, prompt_logprobs=2)
    found = {}
    for name, path in paths.items():
        runs = Driver(Path(path), collectives=collectives)
        # chunks of two pages, mixed with decode rows
        first = runs.run(prompts(), greedy, chunk=32, budget=70)
        second = runs.run(prompts(), seeded(), chunk=32, budget=70, seeds=range(5, 10))
        found[name] = {
            "greedy": [request.output for request in first],
            "logprobs": [[sorted(c.top) for c in request.chances] for request in first],
            "prompts": [[(c.chosen, c.top) for c in r.prompt_chances] for r in first],
            "seeded": [request.output for request in second],
        }
    return found


def test_every_family_is_compared(models):
    assert set(models) == set(FAMILIES)


def compare(found: dict[str, Any], models: dict[str, Path], reference: Reference) -> None:
    assert set(found) == set(models)
    for name, family in found.items():
        for at, prompt in enumerate(prompts()):
            output = family["greedy"][at]
            assert output == reference(models[name], prompt, OUTPUT), (name, len(prompt))
            expected = reference.logprobs(models[name], prompt + output[:-1])[len(prompt) - 1 :]
            ours = torch.tensor(family["logprobs"][at])
            assert torch.equal(ours[..., 0], torch.arange(len(expected[0])).expand(OUTPUT, -1))
            torch.testing.assert_close(ours[..., 1], expected, atol=1e-4, rtol=0)
            compare_prompt(family["prompts"][at], reference.logprobs(models[name], prompt), prompt)


def compare_prompt(found: list[Any], expected: torch.Tensor, prompt: list[int]) -> None:
    """`found`, as JSON has it, has each token's own and the two likeliest after its prefix."""
    assert len(found) == len(prompt) - 1
    for (chosen, top), scores, token in zip(found, expected[:-1], prompt[1:], strict=True):
        values, ids = scores.topk(2)
        assert [id for id, _ in top] == ids.tolist()
        ours = torch.tensor([chosen, *(value for _, value in top)])
        theirs = torch.stack((scores[token], *values))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_one_rank(models, reference):
    compare(answers(ALONE, {name: str(path) for name, path in models.items()}), models, reference)


WIDTHS = {"Qwen2ForCausalLM": 2, "Qwen2MoeForCausalLM": 2, "Qwen3ForCausalLM": 4}
"""Who is split how wide in every run; the rest of the matrix is a soak."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*each, marks=() if WIDTHS.get(each[0]) == each[1] else pytest.mark.soak)
        for each in product(FAMILIES, (2, 4))
    ],
)
def test_shards(name, size, models, reference, ranks):
    """There are two KV heads: each of four ranks has a copy of one, and one query head."""
    model = {name: models[name]}
    paths = {name: str(models[name])}
    found = ranks(answers, size, paths=paths)
    compare(found[0], model, reference)
    assert found[0][name]["seeded"] == answers(ALONE, paths)[name]["seeded"]
    assert all(other == found[0] for other in found[1:])
