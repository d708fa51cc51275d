"""Llama 2 and 3, and whatever names itself LlamaForCausalLM."""

from pds_engine.spec import DecoderSpec, Json, dense

ARCHITECTURE = "LlamaForCausalLM"


def spec(config: Json) -> DecoderSpec:
    return dense(config, ARCHITECTURE)
