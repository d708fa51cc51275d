"""Gemma 2: norms before and behind each part, soft caps, and a window in every other layer."""

from pds_engine.errors import ConfigError
from pds_engine.models.components import (
    FULL,
    SLIDING,
    decoder,
    dense,
    gqa,
    layer_count,
    windows_by_layer,
)
from pds_engine.models.config_json import flag, number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import Names, NormNames
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Gemma2ForCausalLM"
NAMES = Names(norms=NormNames(feed_in="pre_feedforward_layernorm"))
"""Of all Gemmas from the second on."""
FIXED = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),  # a leftover of the first Gemma, which nobody reads
    "use_bidirectional_attention": (False, None),
}


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Gemma 2; the first layer has a window."""
    _check_old_window(config)
    default = [FULL if layer % 2 else SLIDING for layer in range(layer_count(config))]
    softcap = _cap(config, "attn_logit_softcapping", missing=50.0)
    layers = [
        LayerSpec(
            attention=gqa(
                config,
                kv_heads=4,
                head_dim=256,
                scale=scale(config),
                softcap=softcap,
                window=size,
            ),
            feed=dense(config, activation="gelu_tanh"),
        )
        for size in windows_by_layer(config, default, missing=4096)
    ]
    return gemma(config, NAME, layers, softcap=_cap(config, "final_logit_softcapping", missing=30))


def gemma(
    config: Json, architecture: str, layers: list[LayerSpec], *, softcap: float | None
) -> DecoderSpec:
    """A decoder with what all Gemmas from the second on have around their layers."""
    return decoder(
        config,
        architecture,
        layers,
        tied=flag(config, "tie_word_embeddings", missing=True),
        norms="sandwich",
        norm_offset=1.0,
        norm_wide=True,
        embedding_scale=whole(config, "hidden_size") ** 0.5,
        softcap=softcap,
    )


def scale(config: Json) -> float:
    """What scores are multiplied by: heads may be of another size than it is made for."""
    found: float = number(config, "query_pre_attn_scalar", missing=256) ** -0.5
    return found


def _cap(config: Json, key: str, missing: float) -> float | None:
    return None if config.get(key, missing) is None else number(config, key, missing=missing)


def _check_old_window(config: Json) -> None:
    """`sliding_window_size` is an older name that checkpoints have besides, and nobody reads."""
    old, size = config.get("sliding_window_size"), config.get("sliding_window", 4096)
    if old is not None and old != size:
        raise ConfigError(
            f"config.json: sliding_window_size {old!r} is not sliding_window, {size!r}",
            hint="sliding_window is what counts: take sliding_window_size out",
        )


FAMILY = Family(
    architecture=NAME,
    model_type="gemma2",
    spec=spec,
    names=NAMES,
    reads=frozenset(
        {
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "sliding_window_size",
        }
    ),
    fixed=FIXED,
)
