"""What config.json says of quantized weights: read, or refused by the option's name."""

import subprocess
import sys
from pathlib import Path

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models.quantized import Scheme, read

DEEPSEEK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def compressed(weights=None, group=None, **keys):
    """A model of llm-compressor's: one scale a row, inputs scaled as they come."""
    whole = {
        "num_bits": 8,
        "type": "float",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
        "group_size": None,
        "observer": "minmax",
    }
    first = {
        "targets": ["Linear"],
        "weights": whole | (weights or {}),
        "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": first | (group or {})},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    } | keys


def scheme(said, module="model.layers.0.mlp.up_proj"):
    return read(Path("/nowhere"), {"quantization_config": said}).scheme(module)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_model_that_says_nothing_is_not_quantized(config):
    assert read(Path("/nowhere"), config) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (DEEPSEEK, Scheme(("block",), (128, 128))),
        (DEEPSEEK | {"weight_block_size": [64, 32]}, Scheme(("block",), (64, 32))),
        # transformers' default, which is not told from a scale for the whole by the key
        ({"quant_method": "fp8"}, Scheme(("block", "tensor"), (128, 128))),
        (
            {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
            Scheme(("tensor",), None, static=True),
        ),
        (compressed(), Scheme(("channel",))),
        (compressed({"strategy": "tensor"}), Scheme(("tensor",))),
        (
            compressed({"strategy": "block", "block_structure": [128, 64]}),
            Scheme(("block",), (128, 64)),
        ),
        (
            compressed({"strategy": "block", "block_structure": "128x64"}),
            Scheme(("block",), (128, 64)),
        ),
        (
            compressed(group={"input_activations": {"dynamic": False}}),
            Scheme(("channel",), static=True),
        ),
        (compressed(group={"input_activations": None}), Scheme(("channel",))),
        (compressed(format="naive-quantized"), Scheme(("channel",))),
        (
            compressed(group={"format": "float-quantized"}, format="mixed-precision"),
            Scheme(("channel",)),
        ),
        (
            compressed(sparsity_config={"format": "dense"}, transform_config={}),
            Scheme(("channel",)),
        ),
        (compressed(run_compressed=True), Scheme(("channel",))),
    ],
)
def test_how_a_weight_is_scaled(said, expected):
    assert scheme(said) == expected


def test_a_module_has_the_scheme_of_what_names_it_most_closely():
    groups = {
        name: compressed({"strategy": strategy}, {"targets": [target]})["config_groups"]["group_0"]
        for name, strategy, target in (
            ("all", "tensor", "Linear"),
            ("attention", "channel", "re:.*self_attn"),
            ("one", "tensor", "model.layers.3.self_attn.o_proj"),
        )
    }
    said = compressed(config_groups=groups)
    assert scheme(said, "model.layers.3.self_attn.q_proj").kinds == ("channel",)
    assert scheme(said, "model.layers.3.self_attn.o_proj").kinds == ("tensor",)
    assert scheme(said, "model.layers.3.mlp.up_proj").kinds == ("tensor",)
    del groups["all"]
    assert scheme(said, "model.layers.3.mlp.up_proj") is None


@pytest.mark.parametrize(
    ("said", "plain", "quantized"),
    [
        (DEEPSEEK, [], ["lm_head", "model.layers.0.mlp.gate"]),
        (
            DEEPSEEK | {"modules_to_not_convert": ["lm_head", "model.layers.1", "mlp.gate"]},
            ["lm_head", "model.layers.1", "model.layers.1.mlp.up_proj", "model.layers.0.mlp.gate"],
            ["model.layers.11.mlp.up_proj", "model.layers.0.mlp.gate_proj"],
        ),
        (
            {"quant_method": "fp8", "ignored_layers": ["model.layers.0.self_attn"]},
            ["model.layers.0.self_attn.q_proj"],
            ["model.layers.1.self_attn.q_proj"],
        ),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
            ["model.layers.10.self_attn.q_proj"],
            ["model.layers.10.mlp.experts"],
        ),
        (
            compressed(ignore=["lm_head", "re:.*mlp.gate$", "model.layers.1"]),
            ["lm_head", "model.layers.0.mlp.gate", "model.layers.1"],
            ["model.layers.1.mlp.up_proj", "model.layers.0.mlp.gate_proj", "lm_head2"],
        ),
        (compressed(ignore=None), [], ["lm_head"]),
    ],
)
def test_which_modules_are_plain(said, plain, quantized):
    found = read(Path("/nowhere"), {"quantization_config": said})
    assert {name: found.ignores(name) for name in plain + quantized} == dict.fromkeys(
        plain, True
    ) | dict.fromkeys(quantized, False)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (DEEPSEEK | {"fmt": "e5m2"}, "fmt 'e5m2'"),
        (DEEPSEEK | {"activation_scheme": "none"}, "activation_scheme 'none'"),
        (DEEPSEEK | {"scale_fmt": "half"}, "scale_fmt 'half'"),
        (DEEPSEEK | {"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
        (DEEPSEEK | {"weight_block_size": [128]}, r"weight_block_size \[128\]"),
        (DEEPSEEK | {"weight_block_size": [128, 0]}, r"weight_block_size \[128, 0\]"),
        (DEEPSEEK | {"weight_block_size": 128}, "weight_block_size 128"),
        (DEEPSEEK | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert 'lm_head'"),
        (DEEPSEEK | {"modules_to_not_convert": ["a("]}, r"modules_to_not_convert 'a\('"),
        (DEEPSEEK | {"modules_to_convert": ["model.embed"]}, r"modules_to_convert \['model.embed"),
        (DEEPSEEK | {"rotation": "hadamard"}, "rotation 'hadamard'"),
        (compressed(config_groups=None), "config_groups None"),
        (compressed(config_groups={"a": 1}), "config_groups.a 1"),
        (compressed(format="pack-quantized"), "format 'pack-quantized'"),
        (
            compressed(group={"format": "nvfp4-pack-quantized"}),
            "config_groups.group_0.format 'nvfp4-pack-quantized'",
        ),
        (compressed(group={"weights": None}), r"config_groups.group_0 \{"),
        (compressed(group={"output_activations": {"num_bits": 8}}), "group_0.output_activations"),
        (compressed({"num_bits": 4}), "group_0.weights.num_bits 4"),
        (compressed({"type": "int"}), "group_0.weights.type 'int'"),
        (compressed({"strategy": "group"}), "group_0.weights.strategy 'group'"),
        (compressed({"symmetric": False}), "group_0.weights.symmetric False"),
        (compressed({"actorder": "weight"}), "group_0.weights.actorder 'weight'"),
        (compressed({"strategy": "block"}), "group_0.weights.block_structure None"),
        (
            compressed({"strategy": "block", "block_structure": "128xN"}),
            "group_0.weights.block_structure '128xN'",
        ),
        (compressed(ignore=["re:("]), r"ignore 're:\('"),
        (compressed(ignore=[1]), r"ignore \[1\]"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (compressed(transform_config={"config_groups": {"R1": {}}}), "transform_config"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        ({"quant_method": "mxfp4", "block_size": 16}, "block_size 16"),
    ],
)
def test_an_option_that_is_not_served_is_named(said, named):
    with pytest.raises(
        ConfigError, match=rf"quantization_config\.(config_groups\.)?{named}"
    ) as caught:
        read(Path("/nowhere"), {"quantization_config": said})
    assert f"is not served with {said['quant_method']}" in caught.value.message
    assert "serve a checkpoint in bfloat16" in caught.value.hint


def test_it_imports_no_torch():
    code = "import sys, pds_engine.models.scales; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
