"""Mistral: Llama whose first version sees a sliding window of tokens.

Without a key `sliding_window` there is one of 4,096 tokens: later versions say null.
"""

from pds_engine.models.components import (
    FULL,
    SLIDING,
    all_alike,
    decoder,
    dense,
    gqa,
    layer_count,
    window,
)
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "MistralForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Mistral: every layer has the window, if there is one."""
    size = window(config, missing=4096)
    all_alike(config, FULL if size is None else SLIDING)
    layer = LayerSpec(attention=gqa(config, kv_heads=8, window=size), feed=dense(config))
    return decoder(config, NAME, [layer] * layer_count(config))


FAMILY = Family(architecture=NAME, model_type="mistral", spec=spec)
