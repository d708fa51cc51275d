"""Qwen2 and Qwen2.5, dense: Llama with biases on queries, keys and values."""

from pds_engine.spec import DecoderSpec, Json, dense

ARCHITECTURE = "Qwen2ForCausalLM"


def spec(config: Json) -> DecoderSpec:
    return dense(config, ARCHITECTURE, qkv_bias=True)
