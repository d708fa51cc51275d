"""Experts in groups of real processes: prefill and decode may split them in unlike ways."""

from pathlib import Path

import pytest
import torch
from real_group import handed_over
from runner_driver import Reference

pytestmark = pytest.mark.slow

LENGTHS = (1, 16, 33, 100)
OUTPUT = 10


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2-MoE: six experts and a block for all in two layers of three."""
    import transformers

    torch.manual_seed(5)
    config = transformers.Qwen2MoeConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        mlp_only_layers=[1],
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("experts")
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(folder)
    return folder


def test_by_columns_on_one_side_and_whole_on_the_other(running, shaped, path, prompt, submit):
    """One dp rank of the decode group idles until the last request."""
    model = {"model__path": str(path)}
    prefill = running(shaped(role="prefill", parallelism__tp=2, **model))
    decode = running(shaped(role="decode", parallelism__dp=2, parallelism__ep=True, **model))
    asked = [submit(f"r{at}", prompt(n, at), OUTPUT) for at, n in enumerate(LENGTHS)]
    found = handed_over(prefill, decode, asked, decode_ranks=[0, 0, 0, 1])
    reference = Reference()
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {each.request_id: reference(path, each.prompt_ids, OUTPUT) for each in asked}


def test_whole_experts_in_two_stages_of_two_shards(lone, shaped, path, prompt, submit):
    split = {"parallelism__pp": 2, "parallelism__tp": 2, "parallelism__ep": True}
    group = lone(shaped(model__path=str(path), **split))
    asked = [submit(f"u{at}", prompt(n, at), OUTPUT) for at, n in enumerate(LENGTHS)]
    found = group.collect(*asked)
    reference = Reference()
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {each.request_id: reference(path, each.prompt_ids, OUTPUT) for each in asked}
