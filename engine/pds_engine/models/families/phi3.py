"""Phi-3, Phi-3.5 and Phi-4: Llama with joined projections, positions in a part of a head, LongRoPE,
and in some a window."""

from pds_engine.errors import ConfigError
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
from pds_engine.models.config_json import number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import Names
from pds_engine.models.positions import rope
from pds_engine.spec import DecoderSpec, Json, LayerSpec, LongScaling

NAME = "Phi3ForCausalLM"
_ORIGINAL = "original_max_position_embeddings"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Phi-3: every layer is the same."""
    config = {_ORIGINAL: 4096, **config}
    size = window(config)
    all_alike(config, FULL if size is None else SLIDING)
    quotient = whole(config, "hidden_size") // whole(config, "num_attention_heads")
    head_dim = whole(config, "head_dim", null=quotient)
    positions = rope(config, whole(config, "max_position_embeddings"), head_dim, partial=True)
    if not isinstance(positions.scaling, LongScaling | None):
        raise ConfigError(
            "config.json: rope_scaling or rope_parameters has a rope_type that is not supported "
            f"with {NAME}",
            hint="served are default and longrope, as in transformers",
        )
    layer = LayerSpec(attention=gqa(config, rope=positions, window=size), feed=dense(config))
    return decoder(
        config,
        NAME,
        [layer] * layer_count(config),
        norm_eps=number(config, "rms_norm_eps", missing=1e-5),
    )


FAMILY = Family(
    architecture=NAME,
    model_type="phi3",
    spec=spec,
    names=Names(joined=True),
    reads=frozenset({_ORIGINAL, "partial_rotary_factor"}),
    # of Phi-4-mini: all layers attend in full, and no positions are interpolated
    fixed={"full_attn_mod": (1, None), "interpolate_factor": (1, None)},
    own_code=frozenset({"modeling_phi3.Phi3ForCausalLM"}),
)
