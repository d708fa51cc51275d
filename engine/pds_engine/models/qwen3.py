"""Qwen3, dense: Llama with queries and keys normalised per head."""

from pds_engine.spec import Family

FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    qk_norm=True,
    kv_heads=32,
    head_dim=128,
    window_needs_switch=True,
)
