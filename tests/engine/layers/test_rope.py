"""Frequencies and rotation against transformers."""

import pytest
import torch
from pds_engine.layers.rope import frequencies, rotate, table
from pds_engine.spec import RopeSpec
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SPECS = {
    "default": RopeSpec(5e5),
    "linear": RopeSpec(1e4, "linear", 4.0),
    "llama3": RopeSpec(5e5, "llama3", 8.0, 1.0, 4.0, 256),
}
PARAMETERS = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "original_max_position_embeddings": 256,
        **LLAMA3,
    },
}


@pytest.mark.parametrize("kind", SPECS)
def test_rotation(kind):
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters=PARAMETERS[kind],
    )
    reference = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(frequencies(SPECS[kind], 64), reference.inv_freq)
    positions = torch.tensor([0, 1, 255, 256, 2047])
    x = torch.randn(len(positions), 2, 64)
    cos, sin = reference(x, positions.unsqueeze(0))
    heads = x.transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    rows = table(SPECS[kind], 64, 2048, torch.device("cpu"))[positions]
    torch.testing.assert_close(rotate(x, rows), expected[0].transpose(0, 1), atol=1e-4, rtol=1e-4)
