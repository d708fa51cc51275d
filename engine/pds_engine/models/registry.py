"""Which architectures are served, and whether a layout suits one. No torch: launch asks first."""

from collections.abc import Mapping
from pathlib import Path

from pds_engine.config import EngineConfig, ParallelConfig
from pds_engine.errors import ConfigError
from pds_engine.models import options, quantized
from pds_engine.models.config_json import read_config
from pds_engine.models.families import (
    deepseek_v2,
    deepseek_v3,
    gemma2,
    gemma3,
    gemma3_images,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, DenseSpec, ExpertsSpec, LayerSpec

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.architecture: module.FAMILY
    for module in (
        deepseek_v2,
        deepseek_v3,
        gemma2,
        gemma3,
        gemma3_images,
        gpt_oss,
        llama,
        mistral,
        mixtral,
        olmo2,
        phi3,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_moe,
    )
}


def read_spec(folder: Path) -> DecoderSpec:
    """The spec of the model in `folder`.

    Raises:
        ConfigError: no such model, an unknown architecture, a quantized model, or an option that is
            not supported.
    """
    config = read_config(folder)
    quantized.read(folder, config)
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"config.json: architectures must be a list of names, got {named!r}")
    for architecture in named:
        if architecture in FAMILIES:
            family = FAMILIES[architecture]
            text = family.text(config)
            options.check(text, family)
            return family.spec(text)
    known = f"known: {', '.join(FAMILIES)}"
    if not named:
        raise ConfigError(f"model.path: {folder}/config.json names no architectures", hint=known)
    raise ConfigError(
        f"model.path: {folder} holds a model of unknown architecture {', '.join(named)}", hint=known
    )


def family_of(spec: DecoderSpec) -> Family:
    """The family that `spec` was read by."""
    return FAMILIES[spec.architecture]


def check(config: EngineConfig) -> DecoderSpec:
    """The spec of `config`'s model, once its layout and length are known to suit it.

    Raises:
        ConfigError: of `read_spec` and `check_layout`.
    """
    spec = read_spec(config.model.path)
    check_layout(config, spec)
    return spec


def check_layout(config: EngineConfig, spec: DecoderSpec) -> None:
    """Refuse a layout or a length that does not suit the model.

    Raises:
        ConfigError: pp is above layers, heads are not divisible by tp or columns by tp·dp,
            parallelism.layers is of another model, or max_model_len is above what the model's
            positions reach.
    """
    split, count = config.parallelism, len(spec.layers)
    if split.pp > count:
        raise ConfigError(
            f"parallelism.pp {split.pp} is above the model's {count} layers",
            hint=f"a stage needs a layer: choose pp ≤ {count}",
        )
    layers = split.layers
    if layers is not None and (len(layers) != split.pp or sum(layers) != count):
        raise ConfigError(
            f"parallelism.layers {list(layers)} has {len(layers)} stages and {sum(layers)} layers; "
            f"pp is {split.pp}, and the model has {count} layers",
            hint="give one count a stage, together all layers of the model, or leave it out",
        )
    if split.ep and not _has_experts(spec):
        raise ConfigError(
            f"parallelism.ep: {spec.architecture} at {config.model.path} has no experts to split",
            hint="leave parallelism.ep out",
        )
    _check_split(spec, split)
    if config.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is above the model's {spec.max_position} "
            "positions",
            hint=f"choose max_model_len ≤ {spec.max_position}",
        )


def _check_split(spec: DecoderSpec, split: ParallelConfig) -> None:
    """Heads over an attention group, columns over all ranks of a stage."""
    if spec.heads % split.tp:
        raise ConfigError(
            f"parallelism.tp {split.tp} does not divide the model's {spec.heads} attention heads",
            hint="choose a parallelism.tp that divides both heads and MLP columns",
        )
    for columns in sorted({width for layer in spec.layers for width in _columns(layer, split)}):
        if columns % split.width:
            raise ConfigError(
                f"parallelism.tp {split.tp} times parallelism.dp {split.dp} does not divide the "
                f"model's {columns} MLP columns, which all ranks of a stage share",
                hint="choose a parallelism.tp and a parallelism.dp whose product divides them"
                + (", or split experts whole: parallelism.ep" if _has_experts(spec) else ""),
            )
    if spec.kv.heads % split.tp and split.tp % spec.kv.heads:
        raise ConfigError(
            f"parallelism.tp {split.tp} neither divides nor is a multiple of the model's "
            f"{spec.kv.heads} KV heads",
            hint="choose a parallelism.tp that is a divisor or a multiple of the KV heads",
        )


def _has_experts(spec: DecoderSpec) -> bool:
    return any(isinstance(layer.feed, ExpertsSpec) for layer in spec.layers)


def _columns(layer: LayerSpec, split: ParallelConfig) -> list[int]:
    """The widths of the layer's blocks that are split by columns."""
    feed = layer.feed
    if isinstance(feed, DenseSpec):
        return [feed.columns]
    if split.ep:
        return []
    return [feed.columns, feed.shared_columns]
