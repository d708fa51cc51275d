"""Qwen2 and Qwen2.5, dense: Llama with biases on queries, keys and values."""

from pds_engine.spec import Family

FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    qkv_bias=True,
    kv_heads=32,
    window_needs_switch=True,
)
