"""Whatever a key of config.json says has a verdict; what cannot be is refused by its name."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models.config_json import read_config
from pds_engine.models.registry import FAMILIES
from pds_engine.verdict import judge

ODD = [
    None, 0, -1, 1, 3, 1.5, -0.5, 10**6, 10**18, 10**400, 1e308, 5e-324, float("inf"),
    float("nan"), "", "x", "10", True, False, [], {}, [1], {"a": 1},
]  # fmt: skip
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention"] * 3}
OWN: dict[str, dict[str, Any]] = {
    "DeepseekV3ForCausalLM": {
        **EXPERTS,
        "kv_lora_rank": 32,
        "q_lora_rank": 16,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "num_mtp_layers": 1,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "mscale": 1.0},
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": {**SIZES, **WINDOWS, "query_pre_attn_scalar": 24},
    },
    "GptOssForCausalLM": {**WINDOWS, "num_experts_per_tok": 2, "num_local_experts": 8},
    "Phi3ForCausalLM": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8
        },
    },
    "Qwen3MoeForCausalLM": {
        **EXPERTS,
        "num_experts": 8,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        **WINDOWS,
    },
}  # fmt: skip
"""Families that read between them every kind of key."""


def spoiled(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`config` with one key, at any depth, made each of ODD, or taken out."""
    for key, value in config.items():
        yield {k: v for k, v in config.items() if k != key}
        for odd in ODD:
            yield {**config, key: odd}
        if isinstance(value, dict):
            for part in spoiled(value):
                yield {**config, key: part}


@pytest.mark.parametrize("architecture", OWN)
def test_an_odd_value_has_a_verdict(folder, architecture):
    kind = FAMILIES[architecture].model_type
    sound = {**SIZES, **OWN[architecture], "model_type": kind, "architectures": [architecture]}
    engine = folder.engine()
    path = folder.path / "config.json"
    path.write_text(json.dumps(sound))
    assert judge(engine).refusal is None
    for config in spoiled(sound):
        path.write_text(json.dumps(config))
        found = judge(engine)
        json.dumps(found.as_json())
        assert found.refusal is None or found.refusal.message


def test_a_file_nested_too_deep_is_refused(folder):
    (folder.path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is not JSON"):
        read_config(folder.path)


@pytest.mark.parametrize(
    ("architecture", "keys", "says"),
    [
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most"),
        ("LlamaForCausalLM", {"hidden_size": 10**400}, "hidden_size must be at most"),
        ("LlamaForCausalLM", {"rms_norm_eps": 10**400}, "rms_norm_eps must be between"),
        ("LlamaForCausalLM", {"rope_theta": 1}, "rope_theta 1.0 must be above 1"),
        ("Qwen3MoeForCausalLM", {"num_experts": 10**9}, "num_experts must be at most"),
        ("DeepseekV3ForCausalLM", {"n_routed_experts": 2**30}, "n_routed_experts must be at most"),
        ("DeepseekV3ForCausalLM", {"topk_group": 5}, "topk_group 5 is above the 4 groups"),
        ("DeepseekV3ForCausalLM", {"num_mtp_layers": "x"}, "num_mtp_layers must be a whole"),
        ("Phi3ForCausalLM", {"original_max_position_embeddings": 1}, "nothing is trained on one"),
    ],
)
def test_what_no_model_has_is_refused(architecture, keys, says):
    config = {**SIZES, **OWN.get(architecture, {}), **keys}
    with pytest.raises(ConfigError, match=f"config.json: .*{says}"):
        FAMILIES[architecture].spec(config)
