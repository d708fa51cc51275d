"""The shape of a dense decoder, read from a model folder's config.json. No torch."""

import json
import math
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a family of Llama-like decoders differs from the others.

    `kv_heads`, `head_dim`, `window` and `norm_eps` are defaults for a key that config.json lacks,
    as the family's configuration class of transformers has them. null is different: it means
    "derive it", or "none".
    """

    architecture: str
    model_type: str
    qk_norm: bool = False
    qkv_bias: bool = False
    kv_heads: int | None = None
    """num_key_value_heads; None: as many as query heads."""
    head_dim: int | None = None
    """None: hidden_size divided by the heads."""
    window: int | None = None
    """sliding_window; None: every token sees all before it."""
    norm_eps: float = 1e-6
    """rms_norm_eps."""
    window_needs_switch: bool = False
    """sliding_window means nothing unless use_sliding_window is true, which is refused."""


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


def dense(config: Json, family: Family) -> DecoderSpec:
    """The spec of a Llama-like decoder; models/options.py has looked at the keys not read here.

    Raises:
        ConfigError: a key is missing or has a value that this engine does not compute.
    """
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    kv_heads = _whole(config, "num_key_value_heads", missing=family.kv_heads, null=heads)
    if heads % kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    max_position = _whole(config, "max_position_embeddings")
    return DecoderSpec(
        architecture=family.architecture,
        vocab=_whole(config, "vocab_size"),
        hidden=hidden,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(config, family, hidden, heads),
        intermediate=_whole(config, "intermediate_size"),
        norm_eps=_number(config, "rms_norm_eps", missing=family.norm_eps),
        rope=rope(config, max_position),
        tied=_flag(config, "tie_word_embeddings"),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        max_position=max_position,
        window=None if family.window_needs_switch else _window(config, family),
    )


def _head_dim(config: Json, family: Family, hidden: int, heads: int) -> int:
    size = _whole(config, "head_dim", missing=family.head_dim, null=hidden // heads)
    if size % 2 or (hidden % heads and config.get("head_dim", family.head_dim) is None):
        raise ConfigError(
            f"config.json: heads of {hidden / heads if hidden % heads else size} dimensions "
            f"(hidden_size {hidden}, num_attention_heads {heads}) cannot be: rotary positions need "
            "an even whole number",
            hint="head_dim says how many, where it is not their quotient",
        )
    return size


def _window(config: Json, family: Family) -> int | None:
    if config.get("sliding_window", family.window) is None:
        return None
    return _whole(config, "sliding_window", missing=family.window)


_ROPE_KEYS = frozenset({"rope_type", "type", "rope_theta"})
_ROPE_KINDS: Mapping[str, frozenset[str]] = {
    "default": _ROPE_KEYS,
    "linear": _ROPE_KEYS | {"factor"},
    "llama3": _ROPE_KEYS
    | {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
"""The keys that rotary positions of each kind may have."""


def rope(config: Json, max_position: int) -> RopeSpec:
    """Both spellings: `rope_parameters` (new), or `rope_theta` beside `rope_scaling` (old).

    Raises:
        ConfigError: of an unknown kind, or with a key that its kind does not know.
    """
    where, nested = _nested_rope(config)
    kind = nested.get("rope_type", nested.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KINDS:
        raise ConfigError(
            f"config.json: {where}: rope_type {kind!r} is not supported",
            hint=f"known: {', '.join(_ROPE_KINDS)}",
        )
    for key, value in nested.items():
        whole_head = key == "partial_rotary_factor" and value == 1
        if key not in _ROPE_KINDS[kind] and value is not None and not whole_head:
            raise ConfigError(
                f"config.json: {where} of type {kind!r} has {key} {value!r}, which is not computed",
                hint=f"known: {', '.join(sorted(_ROPE_KINDS[kind]))}",
            )
    theta = _number({**config, **nested}, "rope_theta", missing=10000.0)
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", _number(nested, "factor"))
    return RopeSpec(
        theta,
        "llama3",
        _number(nested, "factor"),
        _number(nested, "low_freq_factor"),
        _number(nested, "high_freq_factor"),
        _whole(nested, "original_max_position_embeddings", missing=max_position),
    )


def _nested_rope(config: Json) -> tuple[str, Json]:
    """The spelling that is there, and its name."""
    given = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    for key, value in given.items():
        if not isinstance(value, dict):
            raise ConfigError(f"config.json: {key} must be an object, got {value!r}")
    if len(given) > 1 and given["rope_parameters"] != given["rope_scaling"]:
        raise ConfigError(
            "config.json: rope_parameters and rope_scaling say different things",
            hint="leave one of them out",
        )
    return next(iter(given.items()), ("rope_parameters", {}))


def _flag(config: Json, key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} must be true or false, got {value!r}")
    return value


def _whole(config: Json, key: str, *, missing: int | None = None, null: int | None = None) -> int:
    value = config.get(key, missing)
    if value is None:
        value = null
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {key} must be a whole number above 0, got {value!r}")
    return value


def _number(config: Json, key: str, *, missing: float | None = None) -> float:
    value = config.get(key, missing)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ConfigError(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)
