"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with mixtures of experts, and a block for every token."""

from pds_engine.models.components import (
    FULL,
    SLIDING,
    all_alike,
    decoder,
    gqa,
    layer_count,
    layer_types,
    window,
)
from pds_engine.models.config_json import flag, whole
from pds_engine.models.family import Family
from pds_engine.models.sparse import QWEN_KEYS, qwen
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Qwen2MoeForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Qwen2-MoE; with use_sliding_window some layers have a window."""
    feeds = qwen(
        config,
        shared_columns=whole(config, "shared_expert_intermediate_size"),
        shared_gate=True,
    )
    bias = flag(config, "qkv_bias", missing=True)
    layers = [
        LayerSpec(attention=gqa(config, kv_heads=16, qkv_bias=bias, window=size), feed=feed)
        for size, feed in zip(_windows(config), feeds, strict=True)
    ]
    return decoder(config, NAME, layers)


def _windows(config: Json) -> list[int | None]:
    """Each layer's window: every second one's below max_window_layers, if nothing else is said."""
    count = layer_count(config)
    size = window(config, missing=4096) if flag(config, "use_sliding_window") else None
    if size is None:
        all_alike(config, FULL)
        return [None] * count
    last = whole(config, "max_window_layers", missing=28)
    default = [SLIDING if at % 2 == 0 and at < last else FULL for at in range(count)]
    return [size if kind == SLIDING else None for kind in layer_types(config, default)]


FAMILY = Family(
    architecture=NAME,
    model_type="qwen2_moe",
    spec=spec,
    reads=QWEN_KEYS
    | {
        "use_sliding_window",
        "max_window_layers",
        "shared_expert_intermediate_size",
        "qkv_bias",
    },
)
