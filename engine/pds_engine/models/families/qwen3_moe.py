"""Qwen3-MoE: Qwen3 with mixtures of experts."""

from pds_engine.models.components import FULL, SLIDING, all_alike, decoder, gqa, window
from pds_engine.models.config_json import flag
from pds_engine.models.family import Family
from pds_engine.models.sparse import QWEN_KEYS, qwen
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Qwen3MoeForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Qwen3-MoE: every layer has the window, if it is switched on."""
    size = window(config, missing=4096) if flag(config, "use_sliding_window") else None
    all_alike(config, FULL if size is None else SLIDING)
    attention = gqa(config, kv_heads=4, qk_norm="head", window=size)
    layers = [LayerSpec(attention=attention, feed=feed) for feed in qwen(config)]
    return decoder(config, NAME, layers)


FAMILY = Family(
    architecture=NAME,
    model_type="qwen3_moe",
    spec=spec,
    reads=QWEN_KEYS | {"use_sliding_window"},
)
