"""Mistral: Llama whose first version sees a sliding window of tokens.

A window as long as the context changes nothing; `registry.check` refuses a shorter one.
"""

from pds_engine.spec import DecoderSpec, Json, dense

ARCHITECTURE = "MistralForCausalLM"


def spec(config: Json) -> DecoderSpec:
    return dense(config, ARCHITECTURE, windowed=True)
