"""Which layers are mixtures of experts, and what of them config.json may say."""

from typing import Any

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models.registry import FAMILIES, check
from pds_engine.spec import ExpertsSpec, GateSpec

CONFIG: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}


def spec_of(name: str, **keys: Any):
    config = {k: v for k, v in (CONFIG | keys).items() if v is not ...}
    return FAMILIES[f"{name}ForCausalLM"].spec(config)


def mixtures(name: str, **keys: Any) -> list[int]:
    layers = enumerate(spec_of(name, **keys).layers)
    return [at for at, layer in layers if isinstance(layer.feed, ExpertsSpec)]


@pytest.mark.parametrize("name", ["Qwen2Moe", "Qwen3Moe"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"decoder_sparse_step": 3}, [2]),
        ({"mlp_only_layers": [0, 3]}, [1, 2]),
        ({"mlp_only_layers": None}, [0, 1, 2, 3]),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 2}, [3]),
        ({"decoder_sparse_step": 5}, []),
    ],
)
def test_which_layers_are_mixtures(name, keys, expected):
    kwargs = {"num_key_value_heads": 4} | keys
    assert mixtures(name, **kwargs) == expected


def test_what_each_family_s_mixture_is():
    qwen3 = spec_of("Qwen3Moe", norm_topk_prob=True).layers[0].feed
    assert qwen3 == ExpertsSpec(experts=8, top_k=2, columns=32, gate=GateSpec(renormalise=True))
    qwen2 = spec_of("Qwen2Moe", num_key_value_heads=4).layers[0].feed
    assert qwen2 == ExpertsSpec(
        experts=8, top_k=2, columns=32, gate=GateSpec(), shared_columns=48, shared_gate=True
    )
    mixtral = spec_of("Mixtral", num_key_value_heads=4).layers[0].feed
    assert mixtral == ExpertsSpec(experts=8, top_k=2, columns=96, gate=GateSpec(renormalise=True))


def test_both_names_of_the_number_of_experts():
    """transformers writes num_local_experts for Qwen3-MoE, and read num_experts for long."""
    expected = spec_of("Qwen3Moe")
    assert spec_of("Qwen3Moe", num_experts=..., num_local_experts=8) == expected
    assert spec_of("Qwen3Moe", num_local_experts=8) == expected
    with pytest.raises(ConfigError, match="num_experts and num_local_experts differ"):
        spec_of("Qwen3Moe", num_local_experts=4)


def test_windows_of_mixtures():
    sliding = {"use_sliding_window": True, "sliding_window": 32, "num_key_value_heads": 4}
    qwen2 = spec_of("Qwen2Moe", **sliding, max_window_layers=3)
    assert [layer.attention.window for layer in qwen2.layers] == [32, None, 32, None]
    assert spec_of("Qwen3Moe", **sliding).window == 32
    assert spec_of("Mixtral", sliding_window=32, num_key_value_heads=4).window == 32
    assert spec_of("Mixtral", sliding_window=None, num_key_value_heads=4).window is None


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_experts": ...}, "num_experts or num_local_experts must be"),
        ({"num_experts": 0}, "num_experts must be a whole number above 0, got 0"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is above the 8 experts"),
        ({"moe_intermediate_size": ...}, "moe_intermediate_size must be"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be a whole number above 0"),
        ({"mlp_only_layers": 3}, "mlp_only_layers must be a list of layers' numbers, got 3"),
        ({"mlp_only_layers": [True]}, "mlp_only_layers must be a list"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ],
)
def test_what_cannot_be_is_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        spec_of("Qwen3Moe", **keys)


def test_expert_parallelism_without_experts_is_refused(folder):
    with pytest.raises(ConfigError, match=r"parallelism\.ep: Qwen3.* has no experts"):
        check(folder.engine(parallelism={"dp": 2, "ep": True}))
