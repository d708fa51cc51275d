"""Reading how a model's positions are told: rotary embeddings. No torch.

Every kind of rope_type that transformers computes is read as transformers reads it. A key that its
kind does not know is refused.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pds_engine.errors import ConfigError
from pds_engine.models.config_json import flag, number, whole
from pds_engine.spec import (
    Json,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    RopeSpec,
    Scaling,
    YarnScaling,
)

_ORIGINAL = "original_max_position_embeddings"
_PART = "partial_rotary_factor"
_COMMON = frozenset({"rope_type", "type", "rope_theta", _PART})
_KINDS: Mapping[str, frozenset[str]] = {
    "default": _COMMON,
    "linear": _COMMON | {"factor"},
    "dynamic": _COMMON | {"factor"},
    "llama3": _COMMON | {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": _COMMON
    | {"factor", _ORIGINAL, "attention_factor", "mscale", "mscale_all_dim"}
    | {"beta_fast", "beta_slow", "truncate"},
    "longrope": _COMMON | {"factor", _ORIGINAL, "attention_factor", "short_factor", "long_factor"},
    "proportional": _COMMON | {"factor"},
}
"""The keys that rotary positions of each kind may have."""
_OLD_NAMES = {"su": "longrope"}
"""What a kind was called before (Phi-3)."""
_BY_LAYER = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
"""The kinds of layers that may have positions of their own, and the key beside the sets of
parameters that has their theta (Gemma 3)."""


def rope(
    config: Json,
    max_position: int,
    head_dim: int,
    layer_type: str | None = None,
    *,
    theta: float = 10000.0,
    partial: bool = False,
    interleaved: bool = False,
) -> RopeSpec:
    """The rotary positions of a model, or of its layers of one type.

    Both spellings are read: `rope_parameters` (new), or `rope_theta` beside `rope_scaling` (old).
    "dynamic" stretches only sequences beyond `max_position`. These are not served, so it is what
    "default" is.

    Args:
        config: config.json.
        max_position: max_position_embeddings: as many positions as may be served, stretched ones
            included.
        head_dim: of queries and keys; in multi-head latent attention of their rotated part.
        layer_type: "full_attention" or "sliding_attention" where the family has parameters for
            each (Gemma 3); None: all layers share them.
        theta: the family's, where config.json has none.
        partial: the family rotates a part of a head where partial_rotary_factor says so (Phi-3).
            In others only "proportional" knows that key.
        interleaved: RopeSpec.interleaved of the family.

    Raises:
        ConfigError: of an unknown kind, with a key that its kind does not know, or with a value
            that cannot be.
    """
    told = _all(config) if layer_type is None else _by_layer(config, layer_type)
    share, dims = _share(config, told, partial), head_dim
    if told.kind != "proportional":
        dims = int(head_dim * share)
    if dims < 2 or dims % 2:
        raise ConfigError(
            f"config.json: {_PART} {share} of {head_dim} dimensions are {dims}, and rotary "
            "positions need an even number above 0"
        )
    attention_factor = 1.0
    scaling: Scaling | None
    match told.kind:
        case "linear":
            scaling = LinearScaling(told.number("factor"))
        case "llama3":
            scaling = _llama3(told, max_position)
        case "yarn":
            scaling = _yarn(told, max_position)
            attention_factor = _yarn_attention(told, scaling.factor)
        case "longrope":
            scaling = _long(told, max_position, dims // 2)
            attention_factor = _long_attention(told, max_position, scaling.original)
        case "proportional":
            pairs = int(share * head_dim // 2)
            scaling = ProportionalScaling(pairs, told.maybe("factor") or 1.0)
        case "dynamic":
            told.number("factor")
            scaling = None
        case _:
            scaling = None
    base = told.number("rope_theta") if "rope_theta" in told.values else theta
    if "rope_theta" not in told.values and told.theta_key in config:
        base = number(config, told.theta_key)
    if base <= 1:
        raise ConfigError(
            f"config.json: rope_theta {base} must be above 1: later pairs turn slower than earlier "
            "ones"
        )
    return RopeSpec(base, dims, scaling, attention_factor, interleaved)


def attention_scale(config: Json, head_dim: int) -> float:
    """What multi-head latent attention multiplies its scores by, before the softmax.

    Where YaRN's mscale_all_dim is told, DeepSeek puts the square of its mscale there instead of a
    factor on cosines and sines, so that it reaches the dimensions that are not rotated, too.

    Args:
        config: config.json.
        head_dim: of a whole query: qk_nope_head_dim + qk_rope_head_dim.

    Raises:
        ConfigError: as of `rope`.
    """
    told = _all(config)
    scale: float = head_dim**-0.5
    every = told.maybe("mscale_all_dim", zero=True)
    if told.kind != "yarn" or not every:
        return scale
    factor = _yarn(told, whole(config, "max_position_embeddings")).factor
    return scale * _mscale(factor, every) * _mscale(factor, every)


def kv_digest(digest: str, ropes: Iterable[RopeSpec], length: int) -> str:
    """`digest` of a model, as pages of a server of sequences of up to `length` tokens need it.

    The keys of LongRoPE's short and long factors do not fit each other, so each set has a digest of
    its own. All other models keep theirs.
    """
    scalings = [rope.scaling for rope in dict.fromkeys(ropes)]
    chosen = [
        "long" if scaling.is_long(length) else "short"
        for scaling in scalings
        if isinstance(scaling, LongScaling)
    ]
    if not chosen:
        return digest
    said = " ".join((digest, *chosen))
    return hashlib.sha256(said.encode()).hexdigest()[: len(digest)]


@dataclass(frozen=True, slots=True)
class _Told:
    """One set of parameters, as config.json has it."""

    where: str
    """Its key in config.json."""
    values: Json
    theta_key: str = "rope_theta"
    """The key of config.json that has theta, where `values` have none."""
    original: int | None = None
    """Stands in config.json beside the set, and goes before its own."""

    @property
    def kind(self) -> str:
        kind = self.values.get("rope_type", self.values.get("type", "default"))
        if not isinstance(kind, str) or _OLD_NAMES.get(kind, kind) not in _KINDS:
            raise ConfigError(
                f"config.json: {self.where}: rope_type {kind!r} is not supported",
                hint=f"known: {', '.join(_KINDS)}",
            )
        return _OLD_NAMES.get(kind, kind)

    def check(self, without: frozenset[str] = frozenset()) -> None:
        """Refuse keys that the kind does not know, and those of `without`."""
        known = _KINDS[self.kind] - without
        for key, value in self.values.items():
            if key not in known and value is not None:
                raise ConfigError(
                    f"config.json: {self.where} of type {self.kind!r} has {key} {value!r}, which "
                    "is not computed",
                    hint=f"known: {', '.join(sorted(known))}",
                )

    def number(self, key: str) -> float:
        return number({self._named(key): self.values.get(key)}, self._named(key))

    def maybe(self, key: str, *, zero: bool = False) -> float | None:
        """None where the key is missing or null, or with `zero` where it is 0."""
        value = self.values.get(key)
        return None if value is None or (zero and value == 0) else self.number(key)

    def trained_on(self, max_position: int) -> int:
        if self.original is not None:
            return self.original
        name = self._named(_ORIGINAL)
        return whole({name: self.values.get(_ORIGINAL, max_position)}, name)

    def flag(self, key: str, *, missing: bool) -> bool:
        name = self._named(key)
        return flag({name: self.values.get(key, missing)}, name)

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        given = self.values.get(key)
        if not isinstance(given, list) or len(given) != count:
            raise ConfigError(
                f"config.json: {self._named(key)} must be a list of {count} numbers, one for each "
                f"pair of rotated dimensions, got {given!r}"
            )
        return tuple(number({self._named(key): value}, self._named(key)) for value in given)

    def _named(self, key: str) -> str:
        return f"{self.where}.{key}"


def _all(config: Json) -> _Told:
    """The parameters that all layers share, in the spelling that is there."""
    given = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    for key, value in given.items():
        _check_object(key, value)
    if len(given) > 1 and given["rope_parameters"] != given["rope_scaling"]:
        raise ConfigError(
            "config.json: rope_parameters and rope_scaling say different things",
            hint="leave one of them out",
        )
    where, values = next(iter(given.items()), ("rope_parameters", {}))
    original = whole(config, _ORIGINAL) if _ORIGINAL in config else None
    told = _Told(where, values, original=original)
    told.check()
    return told


def _by_layer(config: Json, layer_type: str) -> _Told:
    """The parameters of one type of layers, as Gemma 3 has them.

    In the old spelling, rope_scaling is of those layers alone that see all tokens.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new and old:
        raise ConfigError(
            "config.json: rope_parameters and rope_scaling are both there, and only one of them "
            "can be read where types of layers have their own positions",
            hint="leave one of them out",
        )
    where, values = "rope_scaling", old if old and layer_type == "full_attention" else {}
    if new:
        _check_object("rope_parameters", new)
        strange = sorted(set(new) - set(_BY_LAYER))
        if strange:
            raise ConfigError(
                f"config.json: rope_parameters has {', '.join(strange)}, and must have parameters "
                "for each type of layers",
                hint=f"known: {', '.join(_BY_LAYER)}",
            )
        where, values = f"rope_parameters.{layer_type}", new.get(layer_type, {})
    _check_object(where, values)
    if old and "rope_type" not in old:
        raise ConfigError("config.json: rope_scaling must have a rope_type")  # "type" is not read
    told = _Told(where, values, _BY_LAYER[layer_type])
    told.check(frozenset({"truncate"}))  # transformers looks for it elsewhere, and finds none
    return told


def _check_object(key: str, value: object) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"config.json: {key} must be an object, got {value!r}")


def _share(config: Json, told: _Told, partial: bool) -> float:
    """partial_rotary_factor: above 0, at most 1."""
    where, values = f"{told.where}.{_PART}", told.values
    if values.get(_PART) is None:
        where, values = _PART, config
    share = values.get(_PART)
    if share is None:
        return 1.0
    share = number({where: share}, where)
    if share > 1 or (share < 1 and not partial and told.kind != "proportional"):
        raise ConfigError(
            f"config.json: {where} {share} is not computed",
            hint="this architecture rotates whole heads" if share < 1 else "at most 1",
        )
    return share


def _llama3(told: _Told, max_position: int) -> Llama3Scaling:
    low, high = told.number("low_freq_factor"), told.number("high_freq_factor")
    if low >= high:
        raise ConfigError(
            f"config.json: {told.where}: low_freq_factor {low} must be below high_freq_factor "
            f"{high}"
        )
    return Llama3Scaling(told.number("factor"), low, high, told.trained_on(max_position))


def _yarn(told: _Told, max_position: int) -> YarnScaling:
    original = told.trained_on(max_position)
    derived = "factor" in told.values and told.values["factor"] is None
    return YarnScaling(
        factor=max_position / original if derived else told.number("factor"),
        original=original,
        fast=told.maybe("beta_fast", zero=True) or 32.0,
        slow=told.maybe("beta_slow", zero=True) or 1.0,
        truncate=told.flag("truncate", missing=True),
    )


def _yarn_attention(told: _Told, factor: float) -> float:
    """YaRN's temperature, put on cosines and sines: on queries and keys alike."""
    said = told.maybe("attention_factor")
    if said is not None:
        return said
    rotated = told.maybe("mscale", zero=True)
    every = told.maybe("mscale_all_dim", zero=True)
    if rotated and every:
        return _mscale(factor, rotated) / _mscale(factor, every)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _long(told: _Told, max_position: int, pairs: int) -> LongScaling:
    short, long = (told.factors(key, pairs) for key in ("short_factor", "long_factor"))
    return LongScaling(short, long, told.trained_on(max_position))


def _long_attention(told: _Told, max_position: int, original: int) -> float:
    said = told.maybe("attention_factor")
    if said is not None:
        return said
    factor = told.maybe("factor") or max_position / original
    if factor > 1 and original == 1:
        raise ConfigError(
            f"config.json: {_ORIGINAL} 1 cannot be: nothing is trained on one position"
        )
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
