"""Models with experts, split by columns or whole over dp × tp: the tokens are transformers'."""

from pathlib import Path

import pytest
import torch
from dp_driver import Load, run
from grid import on_grid
from pds_engine.parallel.collectives import Collectives
from runner_driver import Driver, Reference

OUTPUT = 6
KINDS = [
    "DeepseekV3ForCausalLM",  # groups of experts, logits in float32, a shared block
    "GptOssForCausalLM",  # biases
    "MixtralForCausalLM",
    "Qwen2MoeForCausalLM",  # a shared block with a gate of its own
    "Qwen3MoeForCausalLM",
]


def load(seed: int, *lengths: int, **keys: int) -> Load:
    source = torch.Generator().manual_seed(seed)
    made = [torch.randint(3, 320, (n,), generator=source).tolist() for n in lengths]
    return Load(made, **keys)


BUSY = load(1, 1, 16, 33, 70, chunk=32, budget=75)
LATE = load(2, 5, 9, arrives=2)
IDLE = Load()


def check(
    path: Path, tp: int, loads: tuple[Load, ...], ep: bool, even: bool, reference: Reference
) -> None:
    split = {"tp": tp, "dp": len(loads), "ep": ep}

    def work(attention: Collectives, stage: Collectives) -> list[list[int]] | None:
        driver = Driver(path, collectives=attention, stage=stage, parallelism=split)
        assert driver.runner_part.ep == ep
        return run(driver, loads, OUTPUT, even=even)

    found = on_grid(tp, len(loads), work)
    for rank, answers in enumerate(found):
        asked = loads[rank // tp].prompts
        assert answers == [reference(path, prompt, OUTPUT) for prompt in asked]


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
@pytest.mark.parametrize("name", KINDS)
def test_two_shards(name, ep, models, reference):
    check(models[name], 2, (BUSY,), ep, False, reference)


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
@pytest.mark.parametrize("even", [False, True], ids=["as they are", "even"])
@pytest.mark.parametrize("tp", [1, 2])
def test_two_dp_ranks(tp, even, ep, models, reference):
    """One is idle until the other is in the middle, and while that one decodes its last tokens."""
    check(models["Qwen3MoeForCausalLM"], tp, (BUSY, LATE), ep, even, reference)


@pytest.mark.parametrize("name", KINDS)
def test_an_idle_dp_rank_computes_for_the_other(name, models, reference):
    check(models[name], 2, (IDLE, BUSY), True, False, reference)
