"""Llama 2 and 3, and whatever names itself LlamaForCausalLM."""

from pds_engine.models.components import FULL, all_alike, decoder, dense, gqa, layer_count
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "LlamaForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Llama: every layer is the same."""
    all_alike(config, FULL)
    layer = LayerSpec(attention=gqa(config), feed=dense(config))
    return decoder(config, NAME, [layer] * layer_count(config))


FAMILY = Family(architecture=NAME, model_type="llama", spec=spec)
