"""Qwen3, dense: Llama with queries and keys normalised per head."""

from pds_engine.spec import DecoderSpec, Json, dense

ARCHITECTURE = "Qwen3ForCausalLM"


def spec(config: Json) -> DecoderSpec:
    return dense(config, ARCHITECTURE, qk_norm=True)
