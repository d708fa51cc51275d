"""Each key of config.json is honoured as transformers honours it, or refused by name."""

import json
import logging
from itertools import product
from typing import Any

import pytest
import transformers
from pds_engine.errors import ConfigError
from pds_engine.models import options
from pds_engine.models.registry import FAMILIES, read_spec
from pds_engine.spec import DecoderSpec, LinearScaling

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 4,
    "max_position_embeddings": 512,
}
LATENT = {"num_key_value_heads": 32, "head_dim": 64, "num_experts_per_tok": 8}
_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OWN: dict[str, dict[str, Any]] = {
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": {**LATENT, "first_k_dense_replace": 1},
    "GptOssForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "MixtralForCausalLM": {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": {**_QWEN, "shared_expert_intermediate_size": 64},
    "Qwen3MoeForCausalLM": {**_QWEN, "num_local_experts": 4},
}
"""In what a family's configuration differs from SMALL, which is one of Llama's kind."""
GEMMA3 = {
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "sliding_window_pattern",
    "rope_local_base_freq",
    "rope_parameters.full_attention",
}
HONOURED: dict[str, set[str]] = {
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3 - {"final_logit_softcapping"},
    "GptOssForCausalLM": {"attention_bias", "num_local_experts", "swiglu_limit"},
    "Phi3ForCausalLM": {
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_parameters.partial_rotary_factor",
    },
    "Gemma2ForCausalLM": {
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    },
}
"""What a family computes by, and others refuse."""
CLASSES = {
    "Gemma3ForCausalLM": "Gemma3TextConfig",
    "Gemma3ForConditionalGeneration": "Gemma3TextConfig",
}
"""Configurations that are not called as their models are."""
PARTS = {"Gemma3ForConditionalGeneration"}
"""Models whose decoder has a configuration within theirs."""


def small(architecture: str) -> dict[str, Any]:
    return SMALL | OWN.get(architecture, {})


def spec_of(architecture: str, config: dict[str, Any]) -> DecoderSpec:
    options.check(config, FAMILIES[architecture])
    return FAMILIES[architecture].spec(config)


def attempt(architecture: str, config: dict[str, Any], key: str) -> DecoderSpec | None:
    """The spec, or None where `key` is named in a refusal."""
    try:
        return spec_of(architecture, config)
    except ConfigError as error:
        if key in error.message:
            return None
        raise


def reference(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with all that the family's class of transformers makes of it."""
    name = CLASSES.get(architecture, architecture.replace("ForCausalLM", "Config"))
    made = getattr(transformers, name)(**json.loads(json.dumps(config)))
    whole = json.loads(made.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    if architecture in PARTS:
        whole["model_type"] = FAMILIES[architecture].model_type
    return whole


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_key_that_is_not_there_means_what_it_means_to_transformers(architecture):
    """Every key that the class has, left out in turn; sizes have no default here."""
    config = small(architecture)
    whole = reference(architecture, config)
    expected = spec_of(architecture, whole)
    refused = set()
    for key in whole:
        left = {k: v for k, v in whole.items() if k != key}
        ours = attempt(architecture, left, key)
        if ours is None:
            refused.add(key)
        else:
            assert ours == spec_of(architecture, reference(architecture, left)), key
    assert (expected.heads, expected.kv.heads) == (32, 1 if expected.kv.latent else 8)
    assert refused <= set(config)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim", "sliding_window", "rope_theta"])
def test_a_key_that_is_null(architecture, key):
    config = {**small(architecture), key: None}
    try:
        theirs = reference(architecture, config)
    except Exception:  # the class refuses it, by whatever error
        theirs = None
    ours = attempt(architecture, config, key)
    if ours is not None and theirs is not None:
        assert ours == spec_of(architecture, theirs)


CHANGING: list[dict[str, Any]] = [
    {"hidden_act": "gelu"},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"is_encoder_decoder": True},
    {"is_causal": False},
    {"use_bidirectional_attention": True},
    {"transformers_weights": "other.safetensors"},
    {"pruned_heads": {"0": [1]}},
    {"per_layer_config": {"0": {"num_attention_heads": 8}}},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": ["chunked_attention"] * 3},
    {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
    {"partial_rotary_factor": 0.5},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "short_factor": [1.0, 1.0]}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}},
    {"rope_scaling": {"rope_type": "axial"}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 0.5}},
    {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
    {"rope_parameters": [1]},
    {"original_max_position_embeddings": 128},
    {"rms_norm_eps": float("nan")},
    {"rope_theta": float("inf")},
    {"tie_word_embeddings": "true"},
    # of Granite, Gemma 2 and 3, Cohere, MiniCPM, OLMo, StableLM, Llama 4, GPT-NeoX, Falcon,
    # Mixtral, SmolLM3, Ministral, gpt-oss, HunYuan
    {"embedding_multiplier": 12.0},
    {"residual_multiplier": 0.22},
    {"attention_multiplier": 0.015625},
    {"logits_scaling": 8.0},
    {"final_logit_softcapping": 30.0},
    {"attn_logit_softcapping": 50.0},
    {"query_pre_attn_scalar": 256},
    {"sliding_window_pattern": 6},
    {"rope_local_base_freq": 1e4},
    {"logit_scale": 0.0625},
    {"use_qk_norm": True},
    {"scale_emb": 12},
    {"dim_model_base": 256},
    {"scale_depth": 1.4},
    {"clip_qkv": 8.0},
    {"use_parallel_residual": True},
    {"use_qkv_bias": True},
    {"attention_chunk_size": 8192},
    {"no_rope_layers": [1, 1, 0]},
    {"rotary_pct": 0.25},
    {"alibi": True},
    {"num_local_experts": 8},
    {"no_rope_layer_interval": 4},
    {"llama_4_scaling_beta": 0.1},
    {"swiglu_limit": 7.0},
    {"cla_share_factor": 2},
    {"norm_type": "layernorm"},
    {"hidden_activation": "relu"},
    {"rope_interleaved": True},
    {"quantization_bits": 4},
]


def named(keys: dict[str, Any]) -> set[str]:
    """The key, and with a dot each of its object's."""
    [(key, value)] = keys.items()
    return {key, *(f"{key}.{inner}" for inner in value)} if isinstance(value, dict) else {key}


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        pytest.param(architecture, keys, id=f"{architecture}-{str(keys)[:50]}")
        for architecture, keys in product(FAMILIES, CHANGING)
        if not HONOURED.get(architecture, set()) & named(keys)
    ],
)
def test_what_changes_the_result_is_refused_by_name(architecture, keys):
    with pytest.raises(ConfigError, match=next(iter(keys))) as caught:
        spec_of(architecture, {**small(architecture), **keys})
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    "keys",
    [
        {"residual_multiplier": 1.0, "logit_scale": 1},
        {"attn_logit_softcapping": None, "use_mrope": False, "num_local_experts": 0},
        {"attention_dropout": 0.1, "embd_pdrop": 0.1, "router_aux_loss_coef": 0.01},
        {"pretraining_tp": 2, "attn_implementation": "flash_attention_2", "use_cache": False},
        {"temperature": 0.6, "repetition_penalty": 1.2, "suppress_tokens": [3]},
        {"layer_types": None, "auto_map": {"AutoConfig": "configuration.Own"}},
        {"max_window_layers": 2, "rope_scaling": None, "partial_rotary_factor": 1.0},
        {"quantization_config": None, "id2label": {"0": "a"}, "torch_dtype": "float16"},
    ],
    ids=str,
)
def test_what_changes_nothing_stops_no_model(keys, caplog):
    plain = spec_of("LlamaForCausalLM", SMALL)
    assert spec_of("LlamaForCausalLM", {**SMALL, **keys}) == plain
    assert not caplog.records


@pytest.mark.parametrize(
    "keys",
    [
        {"load_in_8bit": True}, {"load_in_4bit": True}, {"hqq": {"nbits": 4}}, {"weight_bits": 4},
        {"bits": 4}, {"use_dynamic_ntk": True}, {"ntk_alpha": 1000}, {"swiglu_alpha": 1.7},
        {"parallel_block": True}, {"prefix_lm": True}, {"mask": "prefix"}, {"use_mla": True},
        {"softmax_temperature": 2.0}, {"fan_in_fan_out": True}, {"interleaved": True},
        {"mlp_ratio": 2}, {"attn_temperature_drop": 2},
    ],
    ids=str,
)  # fmt: skip
def test_other_spellings_of_quantization_and_mathematics_are_refused(keys):
    (key,) = keys
    with pytest.raises(ConfigError, match=key):
        spec_of("LlamaForCausalLM", {**SMALL, **keys})


def test_a_tool_s_own_word_is_ignored_and_named(caplog):
    config = {**SMALL, "unsloth_version": "2025.1", "_name_or_path": "/tmp/x", "run": {"id": 7}}
    with caplog.at_level(logging.WARNING, "pds.models"):
        assert spec_of("LlamaForCausalLM", config) == spec_of("LlamaForCausalLM", SMALL)
    assert [record.getMessage() for record in caplog.records] == [
        "config.json: ignored run, unsloth_version"
    ]


def test_llama3_positions_have_their_default():
    scaling = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4}
    config = {**SMALL, "rope_scaling": scaling}
    made = reference("LlamaForCausalLM", config)
    assert made["rope_parameters"]["original_max_position_embeddings"] == 512
    assert spec_of("LlamaForCausalLM", config) == spec_of("LlamaForCausalLM", made)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_phi3_has_the_positions_that_it_has_in_transformers(kind):
    scaling = {"rope_type": kind, "factor": 2.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1, "high_freq_factor": 4}
    with pytest.raises(ConfigError, match=r"rope_type .* not supported with Phi3ForCausalLM"):
        spec_of("Phi3ForCausalLM", {**SMALL, "rope_scaling": scaling})


def test_two_names_of_a_window_agree():
    config = {**SMALL, "sliding_window": 32, "sliding_window_size": 32}
    plain = {**SMALL, "sliding_window": 32}
    assert spec_of("Gemma2ForCausalLM", config) == spec_of("Gemma2ForCausalLM", plain)
    with pytest.raises(ConfigError, match="sliding_window_size 64 is not sliding_window, 32"):
        spec_of("Gemma2ForCausalLM", {**config, "sliding_window_size": 64})


def test_a_layer_needs_the_window_that_it_is_to_have():
    with pytest.raises(ConfigError, match="sliding_window must be a whole number above 0"):
        spec_of("Gemma2ForCausalLM", {**SMALL, "sliding_window": None})


def test_code_that_a_checkpoint_brings_is_known_or_refused():
    config = {**SMALL, "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert spec_of("Phi3ForCausalLM", config) == spec_of("Phi3ForCausalLM", SMALL)
    with pytest.raises(ConfigError, match="auto_map"):
        spec_of("LlamaForCausalLM", config)


def test_two_spellings_that_disagree_are_refused():
    linear = {"rope_type": "linear", "factor": 2.0}
    config = {**SMALL, "rope_scaling": linear, "rope_parameters": linear}
    [layer, *_] = spec_of("LlamaForCausalLM", config).layers
    assert layer.attention.rope.scaling == LinearScaling(2.0)
    config["rope_parameters"] = {"rope_type": "default"}
    with pytest.raises(ConfigError, match="rope_parameters and rope_scaling say different things"):
        spec_of("LlamaForCausalLM", config)


def test_the_folder_is_asked_before_its_keys(folder):
    """A quantized model's other keys are of no interest."""
    folder.configure(quantization_config={"quant_method": "awq"}, logit_scale=2.0)
    with pytest.raises(ConfigError, match="quantized with awq"):
        read_spec(folder.path)
