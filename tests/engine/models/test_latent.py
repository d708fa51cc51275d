"""DeepSeek's models: what their published configurations mean, and what is refused."""

from typing import Any

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models import options
from pds_engine.models.registry import FAMILIES
from pds_engine.spec import (
    DecoderSpec,
    DenseSpec,
    ExpertsSpec,
    GateSpec,
    KvSpec,
    LayerSpec,
    MlaSpec,
    RopeSpec,
    YarnScaling,
)


def published(version: int, **keys: Any) -> dict[str, Any]:
    """What config.json of DeepSeek's checkpoints have alike."""
    name = f"DeepseekV{version}"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"configuration_deepseek.{name}Config",
            "AutoModel": f"modeling_deepseek.{name}Model",
            "AutoModelForCausalLM": f"modeling_deepseek.{name}ForCausalLM",
        },
        "ep_size": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "model_type": f"deepseek_v{version}",
        "moe_layer_freq": 1,
        "pretraining_tp": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
    } | keys


def yarn(weight: float) -> dict[str, Any]:
    return {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": weight,
        "mscale_all_dim": weight,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    }


V2_LITE = published(
    2,
    aux_loss_alpha=0.001,
    first_k_dense_replace=1,
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_group=1,
    n_routed_experts=64,
    n_shared_experts=2,
    norm_topk_prob=False,
    num_attention_heads=16,
    num_experts_per_tok=6,
    num_hidden_layers=27,
    num_key_value_heads=16,
    q_lora_rank=None,
    rope_scaling=yarn(0.707),
    routed_scaling_factor=1.0,
    scoring_func="softmax",
    seq_aux=True,
    topk_group=1,
    topk_method="greedy",
    vocab_size=102400,
)
V2 = V2_LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
V3 = published(
    3,
    first_k_dense_replace=3,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_group=8,
    n_routed_experts=256,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_attention_heads=128,
    num_experts_per_tok=8,
    num_hidden_layers=61,
    num_key_value_heads=128,
    num_nextn_predict_layers=1,
    q_lora_rank=1536,
    quantization_config={
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    rope_scaling=yarn(1.0),
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    topk_group=4,
    topk_method="noaux_tc",
    vocab_size=129280,
)


def spec_of(config: dict[str, Any]) -> DecoderSpec:
    [name] = config["architectures"]
    options.check(config, FAMILIES[name])
    return FAMILIES[name].spec(config)


def attention(weight: float, **sizes: Any) -> MlaSpec:
    mscale = 0.1 * weight * 3.6888794541139363 + 1  # the logarithm of 40
    rope = RopeSpec(10000.0, 64, YarnScaling(40.0, 4096), 1.0, interleaved=True)
    return MlaSpec(
        kv_rank=512,
        nope_dim=128,
        rope_dim=64,
        value_dim=128,
        rope=rope,
        scale=192**-0.5 * mscale * mscale,
        **sizes,
    )


def layers(
    dense: int, total: int, mla: MlaSpec, columns: int, experts: ExpertsSpec
) -> tuple[LayerSpec, ...]:
    plain = LayerSpec(attention=mla, feed=DenseSpec(columns=columns))
    return (plain,) * dense + (LayerSpec(attention=mla, feed=experts),) * (total - dense)


def test_v2_lite_as_it_is_published(caplog):
    found = spec_of(V2_LITE)
    experts = ExpertsSpec(
        experts=64,
        top_k=6,
        columns=1408,
        gate=GateSpec(score="softmax", wide=True),
        shared_columns=2816,
    )
    assert found.layers == layers(1, 27, attention(0.707, heads=16, q_rank=None), 10944, experts)
    assert not caplog.records


def test_v2_as_it_is_published():
    gate = GateSpec(score="softmax", wide=True, scaling=16.0, groups=8, top_groups=3)
    experts = ExpertsSpec(experts=160, top_k=6, columns=1536, gate=gate, shared_columns=3072)
    expected = layers(1, 60, attention(0.707, heads=128, q_rank=1536), 12288, experts)
    assert spec_of(V2).layers == expected


def test_v3_as_it_is_published(caplog):
    found = spec_of(V3)
    gate = GateSpec(
        score="sigmoid",
        wide=True,
        renormalise=True,
        scaling=2.5,
        groups=8,
        top_groups=4,
        group_score="top2",
        correction=True,
    )
    experts = ExpertsSpec(experts=256, top_k=8, columns=2048, gate=gate, shared_columns=2048)
    assert found.layers == layers(3, 61, attention(1.0, heads=128, q_rank=1536), 18432, experts)
    assert (found.heads, found.kv, found.window) == (128, KvSpec(1, 0, 576), None)
    assert not caplog.records


def test_positions_that_are_not_interleaved():
    [rope] = {layer.attention.rope for layer in spec_of(V3 | {"rope_interleave": False}).layers}
    assert not rope.interleaved


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (V2, {"norm_topk_prob": True}, "norm_topk_prob True is not supported"),
    (V2, {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc' is not supported"),
    (V2, {"scoring_func": "sigmoid"}, "scoring_func 'sigmoid' is not supported"),
    (V2, {"num_experts_per_tok": None}, "num_experts_per_tok must be a whole number"),
    (V3, {"topk_method": "greedy"}, "topk_method 'greedy' is not supported"),
    (V3, {"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported"),
    (V3, {"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
    (V3, {"attention_bias": True}, "attention_bias True is not supported"),
    (V3, {"rope_interleave": None}, "rope_interleave must be true or false"),
    (V3, {"head_dim": 128}, "head_dim 128 must be qk_rope_head_dim 64"),
    (V3, {"num_key_value_heads": 8}, "num_key_value_heads 8 must be num_attention_heads 128"),
    (V3, {"first_k_dense_replace": -1}, "first_k_dense_replace must be a whole number of layers"),
    (V3, {"n_group": 7}, "n_routed_experts 256 are not n_group 7 equal groups"),
    (V3, {"num_experts_per_tok": 129}, "num_experts_per_tok 129 is above the 128 experts"),
    (V3, {"auto_map": {"AutoModel": "modeling_own.DeepseekV3Model"}}, "auto_map .* its own code"),
    (V3, {"index_topk": 2048, "attention_sink": 4}, "attention_sink 4 is not known"),
]


@pytest.mark.parametrize(("base", "keys", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_config_that_is_not_served(base, keys, says):
    with pytest.raises(ConfigError, match=says):
        spec_of(base | keys)


def test_own_code_named_with_its_repository():
    names = {"AutoModel": "deepseek-ai/DeepSeek-V3--modeling_deepseek.DeepseekV3Model"}
    assert spec_of(V3 | {"auto_map": names}) == spec_of(V3)
