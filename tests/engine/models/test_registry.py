"""What cannot be served is refused before anything is loaded, by the name of what is wrong."""

import json
import subprocess
import sys

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check, read_spec
from pds_engine.spec import DecoderSpec, GqaSpec, KvSpec, LinearScaling, Llama3Scaling, RopeSpec


def attention(spec: DecoderSpec) -> GqaSpec:
    """Of all layers, which are alike."""
    [found] = {layer.attention for layer in spec.layers}
    assert isinstance(found, GqaSpec)
    return found


def test_a_spec_is_read(folder):
    spec = check(folder.engine())
    assert (len(spec.layers), spec.heads, spec.kv) == (2, 4, KvSpec(2, 8))
    assert attention(spec).qk_norm == "head"
    assert attention(spec).rope == RopeSpec(10000.0, 8)


def test_llama_has_no_head_norms_and_derives_its_head_size(folder):
    folder.configure(architectures=["LlamaForCausalLM"], head_dim=...)
    spec = read_spec(folder.path)
    assert (attention(spec).qk_norm, attention(spec).head_dim) == ("none", 4)


def test_qwen2_has_biases_and_no_head_norms(folder):
    folder.configure(architectures=["Qwen2ForCausalLM"], sliding_window=32)
    spec = check(folder.engine())
    found = attention(spec)
    assert (found.qk_norm, found.qkv_bias, spec.window) == ("none", True, None)


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_a_switch_gives_late_layers_a_window(folder, architecture):
    keys = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    folder.configure(architectures=[architecture], **keys)
    windows = [layer.attention.window for layer in read_spec(folder.path).layers]
    assert windows == [None, 32]
    assert read_spec(folder.path).window is None
    folder.configure(architectures=[architecture], **keys, layer_types=["sliding_attention"] * 2)
    assert read_spec(folder.path).window == 32


@pytest.mark.parametrize(("window", "found"), [(None, None), (..., 4096), (64, 64), (32, 32)])
def test_mistral_has_a_window_unless_it_says_none(folder, window, found):
    folder.configure(architectures=["MistralForCausalLM"], sliding_window=window)
    spec = check(folder.engine())
    assert (attention(spec).qkv_bias, spec.window) == (False, found)


def test_gemma_3_with_the_sizes_that_its_checkpoints_leave_out(folder):
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
    }
    (folder.path / "config.json").write_text(json.dumps(whole))
    spec = read_spec(folder.path)
    assert (spec.vocab, spec.heads, spec.kv) == (262_208, 8, KvSpec(4, 256))
    assert (spec.max_position, spec.tied, spec.softcap) == (131_072, True, None)
    far, near = RopeSpec(1e6, 256, LinearScaling(8.0)), RopeSpec(1e4, 256)
    kinds = [(layer.attention.window, layer.attention.rope) for layer in spec.layers]
    assert kinds == ([(1024, near)] * 5 + [(None, far)]) * 5 + [(1024, near)] * 4


@pytest.mark.parametrize("where", ["rope_parameters", "rope_scaling"])
def test_both_spellings_of_llama3_positions(folder, where):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if where == "rope_parameters":
        folder.configure(**{where: {**scaling, "rope_theta": 5e5}}, rope_theta=...)
    else:
        folder.configure(**{where: scaling}, rope_theta=5e5)
    expected = RopeSpec(5e5, 8, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert attention(read_spec(folder.path)).rope == expected


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"architectures": ["GptForCausalLM"]}, "unknown architecture GptForCausalLM"),
        ({"architectures": None}, "config.json names no architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"model_type": "granite"}, "model_type 'granite' is not that of Qwen3ForCausalLM"),
        ({"hidden_size": ...}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number above 0, got '2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"use_sliding_window": 1}, "use_sliding_window must be true or false, got 1"),
        ({"max_window_layers": -1, "use_sliding_window": True}, "max_window_layers must be"),
        ({"layer_types": ["full_attention"]}, "layer_types .* is not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ({"rope_scaling": {"type": "axial"}}, "rope_type 'axial' is not supported"),
    ],
)
def test_a_config_that_is_not_served(folder, keys, says):
    folder.configure(**keys)
    with pytest.raises(ConfigError, match=says):
        read_spec(folder.path)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"parallelism": {"pp": 3}}, "parallelism.pp 3 is above the model's 2 layers"),
        ({"parallelism": {"tp": 3}}, "parallelism.tp 3 does not divide the model's 4 attention"),
        ({"parallelism": {"tp": 8}}, "parallelism.tp 8 does not divide the model's 4 attention"),
        ({"parallelism": {"tp": 2, "dp": 5}}, "parallelism.tp 2 times parallelism.dp 5 does not"),
        ({"max_model_len": 65}, "max_model_len 65 is above the model's 64 positions"),
    ],
)
def test_a_layout_that_cannot_be(folder, keys, says):
    with pytest.raises(ConfigError, match=says):
        check(folder.engine(**keys))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_kv_heads_are_shared_out_or_copied(folder, tp):
    check(folder.engine(parallelism={"tp": tp}))
    folder.configure(num_attention_heads=12, num_key_value_heads=6, intermediate_size=24)
    if tp < 4:
        check(folder.engine(parallelism={"tp": tp}))
        return
    with pytest.raises(
        ConfigError, match=r"parallelism\.tp 4 neither divides .* 6 KV heads"
    ) as caught:
        check(folder.engine(parallelism={"tp": tp}))
    assert "parallelism.tp" in caught.value.hint


def test_a_folder_that_is_not_there_and_a_file_that_is_not_json(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path: cannot read"):
        read_spec(tmp_path / "absent")
    (folder.path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_spec(folder.path)


def test_it_imports_no_torch():
    code = "import sys, pds_engine.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
