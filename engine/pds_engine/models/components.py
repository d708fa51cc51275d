"""The parts of a spec that many families read from config.json in the same way. No torch."""

from collections.abc import Sequence
from typing import Any

from pds_engine.errors import ConfigError
from pds_engine.models.config_json import count, flag, number, whole
from pds_engine.models.positions import rope
from pds_engine.spec import Activation, DecoderSpec, DenseSpec, GqaSpec, Json, LayerSpec

FULL, SLIDING = "full_attention", "sliding_attention"
MOST_LAYERS = 1000


def decoder(
    config: Json, architecture: str, layers: Sequence[LayerSpec], **more: Any
) -> DecoderSpec:
    """A decoder of these layers; `more`: fields of DecoderSpec that are not as in Llama.

    Raises:
        ConfigError: a size is missing or none.
    """
    common: dict[str, Any] = {
        "architecture": architecture,
        "vocab": whole(config, "vocab_size"),
        "hidden": whole(config, "hidden_size"),
        "layers": tuple(layers),
        "norm_eps": number(config, "rms_norm_eps", missing=1e-6),
        "tied": flag(config, "tie_word_embeddings"),
        "max_position": whole(config, "max_position_embeddings"),
    }
    return DecoderSpec(**common | more)


def gqa(
    config: Json,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10000.0,
    **more: Any,
) -> GqaSpec:
    """Attention of Llama's kind; `more`: fields of GqaSpec that are not as in Llama.

    Args:
        kv_heads: what num_key_value_heads is where it is missing; None: as many as query heads.
        head_dim: the same of head_dim; None: hidden_size divided by the heads.
        theta: what rope_theta is where it is missing.

    Raises:
        ConfigError: a size is missing, or heads cannot be divided so.
    """
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    shared = whole(config, "num_key_value_heads", missing=kv_heads, null=heads)
    if heads % shared:
        raise ConfigError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {shared}"
        )
    size = whole(config, "head_dim", missing=head_dim, null=hidden // heads)
    if size % 2 or (hidden % heads and config.get("head_dim", head_dim) is None):
        raise ConfigError(
            f"config.json: heads of {hidden / heads if hidden % heads else size} dimensions "
            f"(hidden_size {hidden}, num_attention_heads {heads}) cannot be: rotary positions need "
            "an even whole number",
            hint="head_dim says how many, where it is not their quotient",
        )
    if "rope" not in more:
        more["rope"] = rope(config, whole(config, "max_position_embeddings"), size, theta=theta)
    common: dict[str, Any] = {"heads": heads, "kv_heads": shared, "head_dim": size}
    return GqaSpec(**common | {"scale": size**-0.5} | more)


def dense(config: Json, activation: Activation = "silu") -> DenseSpec:
    """The gated block of Llama's kind."""
    return DenseSpec(columns=whole(config, "intermediate_size"), activation=activation)


def layer_count(config: Json) -> int:
    """num_hidden_layers."""
    return whole(config, "num_hidden_layers", most=MOST_LAYERS)


def layer_types(config: Json, default: Sequence[str]) -> tuple[str, ...]:
    """Which layers see all tokens and which a window: FULL or SLIDING, for each layer.

    Raises:
        ConfigError: layer_types is not a list of these, one a layer.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(default)
    if (
        not isinstance(kinds, list)
        or any(kind not in (FULL, SLIDING) for kind in kinds)
        or len(kinds) != layer_count(config)
    ):
        raise ConfigError(
            f"config.json: layer_types {kinds!r} is not supported",
            hint=f"served are {FULL} and {SLIDING}, one for each of {layer_count(config)} layers",
        )
    return tuple(kinds)


def all_alike(config: Json, kind: str) -> None:
    """Refuse layer_types that differ from `kind`, which is what a family computes in all layers.

    Raises:
        ConfigError: some layer is of another kind.
    """
    if any(each != kind for each in layer_types(config, ())):
        raise ConfigError(
            f"config.json: layer_types {config['layer_types']!r} is not supported",
            hint=f"served is a model whose layers are all {kind}",
        )


def window(config: Json, *, missing: int | None = None) -> int | None:
    """sliding_window: tokens that a token sees, itself included; None: all.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    if config.get("sliding_window", missing) is None:
        return None
    return whole(config, "sliding_window", missing=missing)


def windows_by_layer(
    config: Json, default: Sequence[str], *, missing: int
) -> tuple[int | None, ...]:
    """Each layer's window where layer_types, or `default`, says which layers have it.

    Args:
        missing: what sliding_window is where it is missing.

    Raises:
        ConfigError: a layer is to have a window, and sliding_window is no whole number above 0.
    """
    kinds = layer_types(config, default)
    size = whole(config, "sliding_window", missing=missing) if SLIDING in kinds else None
    return tuple(size if kind == SLIDING else None for kind in kinds)


def windows_behind_a_switch(config: Json) -> tuple[int | None, ...]:
    """Each layer's window where use_sliding_window decides whether there are any (Qwen2, Qwen3).

    Layers from max_window_layers on have it, unless layer_types says otherwise.

    Raises:
        ConfigError: a layer is to have a window, and there is none.
    """
    layers = layer_count(config)
    size = window(config, missing=4096) if flag(config, "use_sliding_window") else None
    if size is None:
        all_alike(config, FULL)
        return (None,) * layers
    first = count(config, "max_window_layers", missing=28)
    default = [SLIDING if layer >= first else FULL for layer in range(layers)]
    return tuple(size if kind == SLIDING else None for kind in layer_types(config, default))
