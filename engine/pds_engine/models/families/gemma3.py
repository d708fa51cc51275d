"""Gemma 3, text: queries and keys normalised, and positions and a window of their own in five of
six layers."""

from typing import Any

from pds_engine.models.components import FULL, SLIDING, dense, gqa, layer_count, windows_by_layer
from pds_engine.models.config_json import number, whole
from pds_engine.models.families import gemma2
from pds_engine.models.family import Family
from pds_engine.models.positions import rope
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Gemma3ForCausalLM"
_SIZES = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}
"""The sizes that Google's checkpoints leave out where they are these."""
FIXED: dict[str, tuple[Any, ...]] = {
    **gemma2.FIXED,
    "attn_logit_softcapping": (None,),  # transformers has the key, and does not compute it
}
READS = frozenset(
    {
        "query_pre_attn_scalar",
        "final_logit_softcapping",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "_sliding_window_pattern",  # of layer_types, which transformers writes beside it
    }
)


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Gemma 3."""
    return decoder(config, NAME)


def decoder(config: Json, architecture: str) -> DecoderSpec:
    """The decoder, whatever the architecture calls itself: it may be a part of one."""
    config = {**_SIZES, **config}
    period = whole(config, "sliding_window_pattern", missing=6)
    default = [SLIDING if (at + 1) % period else FULL for at in range(layer_count(config))]
    size, reach = whole(config, "head_dim"), whole(config, "max_position_embeddings")
    far = rope(config, reach, size, FULL, theta=1e6)
    near = rope(config, reach, size, SLIDING, theta=1e4)
    layers = [
        LayerSpec(
            attention=gqa(
                config,
                rope=far if window is None else near,
                scale=gemma2.scale(config),
                qk_norm="head",
                window=window,
            ),
            feed=dense(config, activation="gelu_tanh"),
        )
        for window in windows_by_layer(config, default, missing=4096)
    ]
    cap = config.get("final_logit_softcapping")
    softcap = None if cap is None else number(config, "final_logit_softcapping")
    return gemma2.gemma(config, architecture, layers, softcap=softcap)


FAMILY = Family(
    architecture=NAME,
    model_type="gemma3_text",
    spec=spec,
    names=gemma2.NAMES,
    reads=READS,
    fixed=FIXED,
)
