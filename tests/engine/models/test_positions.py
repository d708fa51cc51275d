"""What config.json says of positions is read as transformers reads it, or refused by name."""

from typing import Any

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.layers.rope import frequencies
from pds_engine.models.positions import attention_scale, kv_digest, rope
from pds_engine.spec import (
    LinearScaling,
    LongScaling,
    ProportionalScaling,
    RopeSpec,
    YarnScaling,
)
from transformers import DeepseekV3Config, Gemma3TextConfig, Phi3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

YARN = {"rope_type": "yarn", "factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_both_spellings():
    expected = RopeSpec(5e5, 4, LinearScaling(3.0))
    new = {"rope_parameters": {"rope_type": "linear", "factor": 3, "rope_theta": 5e5}}
    old = {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 500000}
    assert rope(new, 64, 4) == rope(old, 64, 4) == expected
    assert rope({}, 64, 4) == RopeSpec(10000.0, 4)
    assert rope({}, 64, 4, theta=150000.0) == RopeSpec(150000.0, 4)
    assert rope({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 8.0}, 64, 4).theta == 7.0


def test_where_the_original_positions_are():
    """Beside the parameters, among them, or max_position_embeddings: in this order."""

    def original(**config: Any) -> int:
        nested = {**YARN, **config.pop("nested", {})}
        scaling = rope({"rope_scaling": nested, **config}, 64, 4).scaling
        assert isinstance(scaling, YarnScaling)
        return scaling.original

    key = "original_max_position_embeddings"
    assert original() == 64
    assert original(nested={key: 16}) == 16
    assert original(nested={key: 16}, **{key: 8}) == 8


def test_longrope_of_phi3():
    config = {"rope_scaling": LONG, "original_max_position_embeddings": 16}
    spec = rope(config, 64, 4)
    assert spec.scaling == LongScaling((1.0, 2.0), (3.0, 4.0), 16)
    assert spec.attention_factor == pytest.approx(1.5**0.5)  # √(1 + ln 4 / ln 16)
    assert rope({**config, "rope_scaling": {**LONG, "type": "su"}}, 64, 4) == spec
    assert [spec.scaling.is_long(length) for length in (16, 17)] == [False, True]


def test_a_part_of_a_head_where_the_family_rotates_one():
    config: dict[str, Any] = {"partial_rotary_factor": 0.75}
    assert rope(config, 64, 128, partial=True).dims == 96
    assert rope({"rope_parameters": config}, 64, 128, partial=True).dims == 96
    assert rope({"partial_rotary_factor": 1.0, "rope_scaling": None}, 64, 128).dims == 128
    inner = {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.75}
    assert rope(inner, 64, 128, partial=True).dims == 64
    proportional = {"rope_parameters": {"rope_type": "proportional", **config}}
    assert rope(proportional, 64, 128) == RopeSpec(1e4, 128, ProportionalScaling(48))


SETS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
}
GEMMA3: list[dict[str, Any]] = [
    {},
    {"rope_parameters": SETS},
    {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
    {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 2.0}}},
    {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    {"rope_theta": 3e5, "rope_local_base_freq": 2e3},
    {"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 4}},
]


@pytest.mark.parametrize("config", GEMMA3, ids=str)
def test_layers_of_two_types(config):
    """Gemma 3 in the spellings of transformers 4 and 5: the windows turn faster."""
    sizes = {"num_hidden_layers": 6, "head_dim": 16, "max_position_embeddings": 64}
    copied = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    if "rope_parameters" in copied:
        copied["rope_parameters"] = {k: dict(v) for k, v in copied["rope_parameters"].items()}
    reference = Gemma3RotaryEmbedding(Gemma3TextConfig(**sizes, **copied))
    for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4)):
        spec = rope(config, 64, 16, kind, theta=theta)
        expected = getattr(reference, f"{kind}_inv_freq")
        assert torch.equal(frequencies(spec, 64), expected), kind
        assert spec.attention_factor == getattr(reference, f"{kind}_attention_scaling")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ({"rope_scaling": {"type": "axial"}}, "rope_scaling: rope_type 'axial' is not supported"),
    ({"rope_scaling": {"type": 3}}, "rope_scaling: rope_type 3 is not supported"),
    (
        {"rope_scaling": {"type": "default", "mrope_section": [1, 1]}},
        "rope_scaling of type 'default' has mrope_section",
    ),
    ({"rope_scaling": {**YARN, "alpha": 2}}, "rope_scaling of type 'yarn' has alpha 2"),
    ({"rope_scaling": {**LONG, "long_mscale": 2.0}}, "of type 'longrope' has long_mscale"),
    ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor must be a number above 0"),
    ({"rope_scaling": {"type": "dynamic"}}, r"rope_scaling\.factor must be a number above 0"),
    ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling\.factor must be a number above 0"),
    ({"rope_scaling": {**YARN, "factor": True}}, r"rope_scaling\.factor must be a number"),
    ({"rope_scaling": {**YARN, "mscale": "1"}}, r"rope_scaling\.mscale must be a number"),
    ({"rope_scaling": {**YARN, "beta_fast": -1}}, r"rope_scaling\.beta_fast must be a number"),
    ({"rope_scaling": {**YARN, "truncate": None}}, r"rope_scaling\.truncate must be true or"),
    ({"rope_scaling": {**YARN, "attention_factor": 0}}, r"rope_scaling\.attention_factor must"),
    (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 0.5}},
        r"rope_scaling\.original_max_position_embeddings must be a whole number",
    ),
    (
        {"rope_scaling": YARN, "original_max_position_embeddings": None},
        "original_max_position_embeddings must be a whole number",
    ),
    ({"rope_scaling": {**LONG, "short_factor": [1.0]}}, r"short_factor must be a list of 2 num"),
    ({"rope_scaling": {**LONG, "long_factor": [1.0, 0]}}, r"long_factor must be a number above"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be below"),
    ({"rope_parameters": {"rope_theta": None}}, r"rope_parameters\.rope_theta must be a number"),
    ({"rope_theta": None}, "rope_theta must be a number above 0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not computed"),
    (
        {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}},
        r"rope_scaling\.partial_rotary_factor 0\.5 is not computed",
    ),
    ({"rope_parameters": SETS}, "rope_parameters of type 'default' has full_attention"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED, ids=str)
def test_what_is_refused(config, says):
    with pytest.raises(ConfigError, match=says) as caught:
        rope(config, 64, 4)
    assert str(caught.value).startswith("config.json: ")


REFUSED_BY_LAYER: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": SETS, "rope_scaling": YARN}, "rope_parameters and rope_scaling are both"),
    ({"rope_parameters": YARN}, "rope_parameters has factor, rope_type, and must have parameters"),
    ({"rope_parameters": {"full_attention": None}}, r"parameters\.full_attention must be an obj"),
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling must have a rope_type"),
    (
        {"rope_parameters": {"full_attention": {**YARN, "truncate": False}}},
        r"rope_parameters\.full_attention of type 'yarn' has truncate False",
    ),
    (
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 0}}},
        r"rope_parameters\.full_attention\.factor must be a number above 0",
    ),
]


@pytest.mark.parametrize(("config", "says"), REFUSED_BY_LAYER, ids=str)
def test_what_is_refused_of_layers_of_two_types(config, says):
    with pytest.raises(ConfigError, match=says):
        rope(config, 64, 4, "full_attention")


@pytest.mark.parametrize("share", [1.25, 0.01, 0.25])
def test_a_part_that_cannot_be(share):
    with pytest.raises(ConfigError, match="partial_rotary_factor"):
        rope({"partial_rotary_factor": share}, 64, 12, partial=True)


SCALES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    {**YARN, "mscale_all_dim": 0.707},
    {**YARN, "mscale_all_dim": 0},
    {**YARN, "factor": 1.0, "mscale_all_dim": 1.0},
    YARN,
]


@pytest.mark.parametrize("parameters", SCALES, ids=str)
def test_the_scale_of_latent_attention(parameters):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 8}
    config = DeepseekV3Config(**sizes, rope_parameters=dict(parameters))
    told = {"rope_scaling": parameters, "max_position_embeddings": config.max_position_embeddings}
    assert attention_scale(told, 192) == DeepseekV3Attention(config, 0).scaling


def test_longrope_s_choice_is_part_of_the_model_s_digest():
    """Keys of its two sets of factors do not fit each other. Other models keep their digest."""
    digest = "0123456789abcdef" * 2
    plain, long = RopeSpec(1e4, 4), RopeSpec(1e4, 4, LongScaling((1.0, 1.0), (2.0, 2.0), 16))
    stretched = [plain, RopeSpec(1e4, 4, YarnScaling(4.0, 16))]
    assert {kv_digest(digest, stretched, length) for length in (8, 32)} == {digest}
    found = [kv_digest(digest, [plain, long, long], length) for length in (8, 16, 17, 32)]
    assert found == [found[0], found[0], found[2], found[2]]
    assert len({digest, *found}) == 3
    assert kv_digest(digest, [plain, long], 8) == found[0]  # however many layers have it
    assert {len(each) for each in found} == {32}


def test_phi3_saved_anew_is_read_as_before():
    old = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_theta": 5e5,
        "rope_scaling": LONG,
    }
    new = Phi3Config(**{**old, "rope_scaling": dict(LONG)}).to_dict()
    assert "rope_theta" not in new
    assert rope(new, 64, 4, partial=True) == rope(old, 64, 4, partial=True)
