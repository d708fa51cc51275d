"""OLMo 2: norms behind each part of a layer, and queries and keys normalised over all heads."""

from pds_engine.models.components import FULL, all_alike, decoder, dense, gqa, layer_count
from pds_engine.models.config_json import number
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Olmo2ForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of OLMo 2: every layer is the same."""
    all_alike(config, FULL)
    layer = LayerSpec(attention=gqa(config, qk_norm="whole"), feed=dense(config))
    return decoder(
        config,
        NAME,
        [layer] * layer_count(config),
        norm_eps=number(config, "rms_norm_eps", missing=1e-5),
        norms="post",
        norm_wide=True,
    )


FAMILY = Family(architecture=NAME, model_type="olmo2", spec=spec)
