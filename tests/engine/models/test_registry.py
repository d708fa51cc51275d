"""What cannot be served is refused before anything is loaded, by the name of what is wrong."""

import subprocess
import sys

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check, read_spec
from pds_engine.spec import RopeSpec


def test_a_spec_is_read(folder):
    spec = check(folder.engine())
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (2, 4, 2, 8)
    assert spec.qk_norm
    assert spec.rope == RopeSpec(10000.0)


def test_llama_has_no_head_norms_and_derives_its_head_size(folder):
    folder.configure(architectures=["LlamaForCausalLM"], head_dim=...)
    spec = read_spec(folder.path)
    assert (spec.qk_norm, spec.head_dim) == (False, 4)


def test_qwen2_has_biases_and_no_head_norms(folder):
    folder.configure(architectures=["Qwen2ForCausalLM"], sliding_window=32)
    spec = check(folder.engine())
    assert (spec.qk_norm, spec.qkv_bias, spec.window) == (False, True, None)


@pytest.mark.parametrize(("window", "found"), [(None, None), (..., 4096), (64, 64), (4096, 4096)])
def test_mistral_with_a_window_as_long_as_the_context(folder, window, found):
    folder.configure(architectures=["MistralForCausalLM"], sliding_window=window)
    spec = check(folder.engine())
    assert (spec.qk_norm, spec.qkv_bias, spec.window) == (False, False, found)


def test_a_window_shorter_than_the_context_is_refused(folder):
    folder.configure(architectures=["MistralForCausalLM"], sliding_window=32)
    with pytest.raises(ConfigError, match="above the model's sliding window of 32") as caught:
        check(folder.engine())
    assert caught.value.hint == "choose max_model_len ≤ 32"
    check(folder.engine(max_model_len=32))


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
    assert read_spec(folder.path).rope == RopeSpec(5e5, "llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"architectures": ["GptForCausalLM"]}, "unknown architecture GptForCausalLM"),
        ({"architectures": None}, "unknown architecture none"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"model_type": "granite"}, "model_type 'granite' is not that of Qwen3ForCausalLM"),
        ({"hidden_size": ...}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number above 0, got '2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
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
