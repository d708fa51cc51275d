"""Which architectures are served, and whether a layout suits one. No torch: launch asks first."""

from collections.abc import Mapping
from pathlib import Path

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models import llama, mistral, options, quantized, qwen2, qwen3
from pds_engine.spec import DecoderSpec, Family, dense, read_config

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.architecture: module.FAMILY for module in (llama, mistral, qwen2, qwen3)
}


def read_spec(folder: Path) -> DecoderSpec:
    """The spec of the model in `folder`.

    Raises:
        ConfigError: no such model, an unknown architecture, a quantized model, or an option that is
            not supported.
    """
    config = read_config(folder)
    quantized.check(folder, config)
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"config.json: architectures must be a list of names, got {named!r}")
    for architecture in named:
        if architecture in FAMILIES:
            family = FAMILIES[architecture]
            options.check(config, family)
            return dense(config, family)
    raise ConfigError(
        f"model.path: {folder} holds a model of unknown architecture {', '.join(named) or 'none'}",
        hint=f"known: {', '.join(FAMILIES)}",
    )


def check(config: EngineConfig) -> DecoderSpec:
    """The spec of `config`'s model, once its layout and length are known to suit it.

    Raises:
        ConfigError: also for a layout that cannot be: pp above layers, heads not divisible by tp
            or columns by tp·dp, parallelism.layers of another model, max_model_len above what the
            model's positions or its sliding window reach.
    """
    spec, split = read_spec(config.model.path), config.parallelism
    if split.pp > spec.layers:
        raise ConfigError(
            f"parallelism.pp {split.pp} is above the model's {spec.layers} layers",
            hint=f"a stage needs a layer: choose pp ≤ {spec.layers}",
        )
    layers = split.layers
    if layers is not None and (len(layers) != split.pp or sum(layers) != spec.layers):
        raise ConfigError(
            f"parallelism.layers {list(layers)} has {len(layers)} stages and {sum(layers)} layers; "
            f"pp is {split.pp}, and the model has {spec.layers} layers",
            hint="give one count a stage, together all layers of the model, or leave it out",
        )
    if spec.heads % split.tp:
        raise ConfigError(
            f"parallelism.tp {split.tp} does not divide the model's {spec.heads} attention heads",
            hint="choose a parallelism.tp that divides both heads and MLP columns",
        )
    if spec.intermediate % split.width:
        raise ConfigError(
            f"parallelism.tp {split.tp} times parallelism.dp {split.dp} does not divide the "
            f"model's {spec.intermediate} MLP columns, which all ranks of a stage share",
            hint="choose a parallelism.tp and a parallelism.dp whose product divides them",
        )
    if spec.kv_heads % split.tp and split.tp % spec.kv_heads:
        raise ConfigError(
            f"parallelism.tp {split.tp} neither divides nor is a multiple of the model's "
            f"{spec.kv_heads} KV heads",
            hint="choose a parallelism.tp that is a divisor or a multiple of the KV heads",
        )
    if config.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is above the model's {spec.max_position} "
            "positions",
            hint=f"choose max_model_len ≤ {spec.max_position}",
        )
    if spec.window is not None and config.max_model_len > spec.window:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is above the model's sliding window of "
            f"{spec.window} tokens, and windowed attention is not computed",
            hint=f"choose max_model_len ≤ {spec.window}",
        )
    return spec
