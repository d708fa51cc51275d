"""Frequencies, tables and rotation against transformers."""

import pytest
import torch
from pds_engine.layers.rope import by_halves, frequencies, table
from pds_engine.models.positions import rope
from pds_engine.spec import RopeSpec
from pds_kernels.rope import rotate
from transformers import DeepseekV2Config, DeepseekV3Config, LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2RotaryEmbedding,
    apply_rotary_emb,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi3 import modeling_phi3

CPU = torch.device("cpu")
LONGEST = 131072
SHORT, LONG = [1.0 + i / 40 for i in range(32)], [1.0 + i * i / 10 for i in range(32)]
LONG_ROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
DEEPSEEK = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
KINDS = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "linear, in the old words": {"type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn of Qwen": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
    "yarn of DeepSeek-V3": {
        **DEEPSEEK,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "yarn, two mscales": {**DEEPSEEK, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn, one mscale": {**DEEPSEEK, "mscale": 0.707, "mscale_all_dim": 0},
    "yarn of gpt-oss": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "yarn, its factor derived": {
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": 16384,
    },
    "yarn, a step": {**DEEPSEEK, "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},
    "yarn, its attention said": {**DEEPSEEK, "attention_factor": 1.25},
    "yarn that shrinks": {**DEEPSEEK, "factor": 1.0},
    "longrope": {**LONG_ROPE, "original_max_position_embeddings": 4096},
    "longrope, its factor said": {
        **LONG_ROPE,
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
    },
    "longrope, its attention said": {
        **LONG_ROPE,
        "attention_factor": 1.5,
        "original_max_position_embeddings": 4096,
    },
    "longrope, not stretched": {**LONG_ROPE, "original_max_position_embeddings": LONGEST},
    "proportional": {
        "rope_type": "proportional",
        "rope_theta": 1e6,
        "factor": 2.0,
        "partial_rotary_factor": 0.25,
    },
    "proportional, whole": {"rope_type": "proportional", "rope_theta": 1e4},
}


def llama(parameters: dict[str, object]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        rope_parameters=dict(parameters),
    )


def spec_of(parameters: dict[str, object]) -> RopeSpec:
    return rope({"rope_parameters": parameters}, LONGEST, 64)


@pytest.mark.parametrize("length", [4096, LONGEST])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_attention_factor(kind, length):
    """To the last bit, also LongRoPE's on either side of what the model was trained on."""
    config, spec = llama(KINDS[kind]), spec_of(KINDS[kind])
    told = config.rope_parameters["rope_type"]
    if told == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[told](config, CPU, seq_len=length)
    assert torch.equal(frequencies(spec, length), expected)
    assert spec.attention_factor == factor


@pytest.mark.parametrize("factor", [1.1, 3.3, 7.0])
@pytest.mark.parametrize("max_position", [4000, 4096])
def test_dynamic_is_default_up_to_the_model_s_positions(factor, max_position):
    parameters = {"rope_type": "dynamic", "factor": factor, "rope_theta": 1e4}
    config = llama(parameters)
    config.max_position_embeddings = max_position
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, CPU, seq_len=max_position)
    assert torch.equal(frequencies(spec_of(parameters), max_position), expected)
    assert spec_of(parameters) == RopeSpec(1e4, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_at_near_and_far_positions(kind):
    reference = LlamaRotaryEmbedding(llama(KINDS[kind]))
    positions = torch.tensor([0, 1, 4095, 4096, 65537, LONGEST - 1])
    x = torch.randn(len(positions), 2, 64)
    cos, sin = reference(x, positions.unsqueeze(0))
    rows = table(spec_of(KINDS[kind]), LONGEST, CPU)[positions]
    assert rows.shape == (len(positions), 64)
    assert torch.equal(rows, torch.cat((cos[0, :, :32], sin[0, :, :32]), dim=-1))
    heads = x.transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    # the same products; a compiler may fuse one of them into the sum
    torch.testing.assert_close(rotate(x, rows), expected[0].transpose(0, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("length", [64, 65, 256])
def test_long_factors_are_chosen_once_by_the_server_s_length(length):
    """transformers chooses by the sequence: ours are its rows for the longest that is served."""
    pairs = 12
    config = Phi3Config(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        partial_rotary_factor=0.75,
        pad_token_id=0,
        rope_parameters={
            "type": "longrope",
            "short_factor": SHORT[:pairs],
            "long_factor": LONG[:pairs],
        },
    )
    spec = rope(config.to_dict(), 256, 32, partial=True)
    assert (spec.dims, spec.scaling.is_long(length)) == (24, length > 64)
    positions, x = torch.arange(length), torch.randn(length, 2, 32)
    cos, sin = modeling_phi3.Phi3RotaryEmbedding(config)(x, positions.unsqueeze(0))
    heads = x.transpose(0, 1).unsqueeze(0)
    expected, _ = modeling_phi3.apply_rotary_pos_emb(heads, heads, cos, sin)
    rows = table(spec, length, CPU)
    assert rows.shape == (length, 24)
    torch.testing.assert_close(rotate(x, rows), expected[0].transpose(0, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_part_of_a_head(dtype):
    """The first dimensions turn as a head of that size would; the others keep every bit."""
    rows = table(RopeSpec(1e4, 16), 100, CPU)[torch.tensor([3, 99])]
    x = torch.randn(2, 3, 40).to(dtype)
    x[:, :, 20] = float("nan")
    turned = rotate(x, rows)
    assert turned.dtype == dtype
    assert torch.equal(turned[:, :, :16], rotate(x[:, :, :16].contiguous(), rows))
    assert torch.equal(turned[:, :, 16:].view(torch.uint8), x[:, :, 16:].view(torch.uint8))


class Interleaved:
    """Two heads of DeepSeek's queries and keys; the last 64 of 96 dimensions are rotated."""

    def __init__(self) -> None:
        self.keys = {
            "hidden_size": 48,
            "num_attention_heads": 2,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "max_position_embeddings": 163840,
            "rope_parameters": dict(KINDS["yarn, two mscales"]),
        }
        self.positions = torch.tensor([0, 1, 4096, 163839])
        self.x = torch.randn(4, 48)
        self.weights = [torch.randn(2 * 96, 48) for _ in range(2)]

    def split(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads, T, dims] of what is not rotated, and of what is."""
        projected = (self.x @ weight.T).view(4, 2, 96).transpose(0, 1).unsqueeze(0)
        return projected[..., :32], projected[..., 32:]

    def ours(self) -> tuple[torch.Tensor, torch.Tensor]:
        spec = rope(self.keys, 163840, 64, interleaved=True)
        assert spec.interleaved
        rows = table(spec, 163840, CPU)[self.positions]
        halves = [self.split(by_halves(weight, 96, 32, 64))[1] for weight in self.weights]
        q, k = (rotate(each[0].transpose(0, 1), rows).transpose(0, 1)[None] for each in halves)
        return q, k


def test_interleaved_pairs_of_deepseek_v3():
    made = Interleaved()
    (_, q), (_, k) = (made.split(weight) for weight in made.weights)
    config = DeepseekV3Config(**made.keys)
    cos, sin = DeepseekV3RotaryEmbedding(config)(q, made.positions.unsqueeze(0))
    expected = apply_rotary_pos_emb_interleave(q, k, cos, sin)
    for ours, theirs in zip(made.ours(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_interleaved_pairs_of_deepseek_v2_have_the_same_scores():
    """Its rotated dimensions keep their places; ours are of another order, queries' and keys'."""
    made = Interleaved()
    (_, q), (_, k) = (made.split(weight) for weight in made.weights)
    config = DeepseekV2Config(**made.keys)
    theirs = apply_rotary_emb(
        q, k, DeepseekV2RotaryEmbedding(config)(q, made.positions.unsqueeze(0))
    )
    scores = [q @ k.transpose(2, 3) for q, k in (made.ours(), theirs)]
    torch.testing.assert_close(*scores, atol=1e-2, rtol=1e-4)


def test_reordered_rows_stay_in_their_heads_and_sections():
    rows = torch.arange(20, dtype=torch.float32).unsqueeze(1)
    expected = [0, 1, 2, 4, 6, 3, 5, 7, 8, 9, 10, 11, 12, 14, 16, 13, 15, 17, 18, 19]
    assert by_halves(rows, 10, 2, 6).flatten().tolist() == expected
    assert by_halves(rows.flatten(), 10, 2, 6).tolist() == expected  # a bias
    fp8 = rows.to(torch.float8_e4m3fn)
    assert by_halves(fp8, 10, 2, 6).float().flatten().tolist() == (
        by_halves(fp8.float(), 10, 2, 6).flatten().tolist()
    )


@pytest.mark.parametrize("head_dim", [192, 576])
def test_deepseek_s_reordered_rows_keep_their_blocks_of_scales(head_dim):
    """Rows of q_b_proj (128 + 64 a head) and of kv_a_proj_with_mqa (512 + 64), blocks of 128."""
    heads = 128 if head_dim == 192 else 1
    before = torch.arange(heads * head_dim)
    after = by_halves(before, head_dim, head_dim - 64, 64)
    assert torch.equal(after // 128, before // 128)
