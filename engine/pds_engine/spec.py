"""The shape of a dense decoder, read from a model folder's config.json. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pds_engine.errors import ConfigError

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions. The scaling fields are Llama 3.1's; they mean nothing for "default"."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything that decides the computation, apart from the weights themselves."""

    architecture: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    rope: RopeSpec
    tied: bool
    qk_norm: bool
    """Queries and keys are normalised per head before the rotation (Qwen3)."""
    qkv_bias: bool
    """The projections to queries, keys and values add a bias (Qwen2)."""
    max_position: int
    window: int | None = None
    """Tokens that a token sees, itself included (Mistral); None: all before it."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder.

    Raises:
        ConfigError: the folder or file is missing, or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"model.path: cannot read {path}: {error.strerror}",
            hint="model.path must be a folder of the Hugging Face layout, as the container sees it",
        ) from error
    except ValueError as error:
        raise ConfigError(f"model.path: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model.path: {path} is not a JSON object")
    return config


def dense(
    config: Json,
    architecture: str,
    *,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    windowed: bool = False,
) -> DecoderSpec:
    """The spec of a Llama-like decoder; the options say in what its family differs.

    windowed: `sliding_window` holds for every layer.

    Raises:
        ConfigError: a key is missing or has a value that this engine does not compute.
    """
    _only(config, "hidden_act", "silu")
    _only(config, "attention_bias", False, None)
    _only(config, "mlp_bias", False, None)
    _only(config, "use_sliding_window", False, None)
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    kv_heads = _whole(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    return DecoderSpec(
        architecture=architecture,
        vocab=_whole(config, "vocab_size"),
        hidden=hidden,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_whole(config, "head_dim", hidden // heads),
        intermediate=_whole(config, "intermediate_size"),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=rope(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        max_position=_whole(config, "max_position_embeddings"),
        window=_window(config) if windowed else None,
    )


def _window(config: Json) -> int | None:
    return None if config.get("sliding_window") is None else _whole(config, "sliding_window")


def rope(config: Json) -> RopeSpec:
    """Both spellings: `rope_parameters` (new), or `rope_theta` beside `rope_scaling` (old)."""
    nested = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = _number({**config, **nested}, "rope_theta", 10000.0)
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", _number(nested, "factor"))
    if kind == "llama3":
        return RopeSpec(
            theta,
            "llama3",
            _number(nested, "factor"),
            _number(nested, "low_freq_factor"),
            _number(nested, "high_freq_factor"),
            _whole(nested, "original_max_position_embeddings"),
        )
    raise ConfigError(
        f"config.json: rope_type {kind!r} is not supported", hint="known: default, linear, llama3"
    )


def _only(config: Json, key: str, *allowed: Any) -> None:
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise ConfigError(f"config.json: {key} {value!r} is not supported, only {allowed[0]!r} is")


def _whole(config: Json, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {key} must be a whole number above 0, got {value!r}")
    return value


def _number(config: Json, key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)
