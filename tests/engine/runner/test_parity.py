"""The tokens are those of transformers, however the work is cut, batched and laid out."""

import random
from pathlib import Path

import pytest
import torch
from pds_engine.messages import Sampling

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny"


def prompts(lengths: list[int], vocab: int, seed: int = 1) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(3, vocab) for _ in range(length)] for length in lengths]


def greedy(count: int) -> Sampling:
    return Sampling(max_tokens=count, temperature=0.0)


@pytest.mark.parametrize("chunk", [16, 128, 4096])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_mixed_batches_around_page_edges(family, chunk, request, driver, reference):
    path = request.getfixturevalue(family)
    asked = prompts([1, 15, 16, 17, 31, 32, 33, 130, 250], 320)
    answers = driver(path).run(asked, greedy(18), chunk=chunk, budget=200)
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.output == reference(path, prompt, 18), len(prompt)


@pytest.mark.parametrize("page_size", [1, 7, 64])
@pytest.mark.parametrize("family", ["Qwen3ForCausalLM", "DeepseekV3ForCausalLM"])
def test_page_sizes(page_size, family, models, driver, reference):
    path, asked = models[family], prompts([5, 64, 65], 320)
    answers = driver(path, page_size=page_size).run(asked, greedy(8), chunk=33)
    assert [a.output for a in answers] == [reference(path, p, 8) for p in asked]


@pytest.mark.parametrize(
    "family", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM"]
)
def test_several_threads_compute_what_one_does(family, models, driver):
    """Whole layers, to the last bit: operations wait for the one before, whoever computes it."""
    asked, sampling = (
        prompts([5, 64, 130], 320),
        Sampling(max_tokens=40, temperature=0.0, logprobs=5),
    )
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        answers = driver(models[family]).run(asked, sampling, chunk=33)
        found.append([(each.output, each.chances) for each in answers])
    assert found[0] == found[1] == found[2]


def test_padding_changes_nothing(llama, driver, reference):
    asked = prompts([40, 9], 320)
    answers = driver(llama).run(asked, greedy(6), padded=64)
    assert [a.output for a in answers] == [reference(llama, p, 6) for p in asked]


def test_the_example_model(driver, reference):
    if not (TINY / "model.safetensors").exists():
        pytest.fail("examples/models/tiny holds no weights")
    asked = prompts([3, 100, 300], 1536)
    answers = driver(TINY).run(asked, greedy(6))
    assert [a.output for a in answers] == [reference(TINY, p, 6) for p in asked]
