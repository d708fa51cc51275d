"""What a model folder says of how its weights are quantized: how to read them, or why not.

Served are weights whose stored numbers, times their scales, are the weights: FP8 (DeepSeek's blocks
and compressed-tensors' scales) and MXFP4 (gpt-oss's experts). They are read as the plain weights
that they stand for, or stay in FP8 (models/matrices.py). A scheme for activations changes no
weight, and is not followed: plain weights have activations in the model's dtype, as transformers
has when it dequantizes. What the tensors say is models/scales.py's part. No torch.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pds_engine.errors import ConfigError
from pds_engine.spec import Json

CURE = (
    "serve a checkpoint in bfloat16, float16 or float32, or one quantized with "
    "fp8, compressed-tensors (FP8) or mxfp4"
)
_KEY = "quantization_config"
_OTHER_KEYS = ("compression_config", "quantization")
"""An older compressed-tensors'; MLX's."""
_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""ModelOpt's; AutoGPTQ's; AutoAWQ's."""
_METHODS = ("quant_method", "quant_algo", "quantization_status", "kv_cache_quant_algo")
_LOADING = {"quant_method", "dequantize", "run_compressed", "use_optimized_inference"}
"""The method, and what transformers keeps there of how it is asked to load a model."""
_DEFAULT_BLOCK = (128, 128)
"""transformers' FineGrainedFP8Config without `weight_block_size`."""

Kind = Literal["block", "channel", "tensor"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How FP8 weights are scaled: the kinds of scales they may have, and the `block`'s size."""

    kinds: tuple[Kind, ...]
    block: tuple[int, int] | None = None
    static: bool = False
    """Scales of the layers' inputs are stored, too. They are for quantizing activations; nobody
    reads them."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What config.json's quantization_config says.

    `targets` are the modules that have a scheme, the more particular first; `ignored` those whose
    weights are plain. Both are patterns of modules' names, to be matched from the start.
    """

    method: Literal["fp8", "compressed-tensors", "mxfp4"]
    ignored: tuple[re.Pattern[str], ...] = ()
    targets: tuple[tuple[re.Pattern[str], Scheme], ...] = ()
    exponents: bool = False
    """Scales stored as bytes are exponents of two (E8M0)."""

    def ignores(self, module: str) -> bool:
        """Whether this module's weights must be plain."""
        return any(pattern.match(module) for pattern in self.ignored)

    def scheme(self, module: str) -> Scheme | None:
        """How this module's weight is scaled; None: config.json has no scheme for it."""
        return next((scheme for pattern, scheme in self.targets if pattern.match(module)), None)


def read(folder: Path, config: Json) -> Quantisation | None:
    """How the weights in `folder` are quantized; None: they are not, as far as is said.

    Raises:
        ConfigError: by a method, or with an option, that is not served; names it and the file that
            declares it.
    """
    for key in _OTHER_KEYS:
        if config.get(key):
            raise _refusal(config[key], f"config.json: {key}")
    for name in _FILES:
        if (folder / name).exists():
            raise _refusal(_read(folder / name), name)
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"model.path: {folder} holds a LoRA adapter (adapter_config.json), which is not "
            "applied",
            hint="merge the adapter into the model's weights, or take its files out",
        )
    said = config.get(_KEY)
    if not said:
        return None
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    if method == "fp8":
        return _fp8(said)
    if method == "compressed-tensors":
        return _compressed(said)
    if method == "mxfp4":
        _only(said, {"modules_to_not_convert"})
        return Quantisation("mxfp4", _modules(said, "modules_to_not_convert"))
    raise _refusal(said, f"config.json: {_KEY}")


def _fp8(said: Json) -> Quantisation:
    """DeepSeek's, and transformers' fine-grained FP8."""
    _only(
        said,
        {"activation_scheme", "weight_block_size", "modules_to_not_convert", "ignored_layers",
         "fmt", "scale_fmt", "expert_dtype"},
    )  # fmt: skip
    for key, served in (
        ("fmt", ("e4m3",)),
        ("activation_scheme", ("dynamic", "static")),
        ("scale_fmt", ("float", "ue8m0")),
        ("expert_dtype", ("fp8",)),
    ):
        if said.get(key) is not None and said[key] not in served:
            raise _option(said, key)
    kinds: tuple[Kind, ...] = ("tensor",)
    block = None
    if said.get("weight_block_size", _DEFAULT_BLOCK) is not None:
        block = _block(said, said.get("weight_block_size", _DEFAULT_BLOCK), "weight_block_size")
        kinds = ("block",) if "weight_block_size" in said else ("block", "tensor")
    scheme = Scheme(kinds, block, said.get("activation_scheme") == "static")
    key = "modules_to_not_convert" if said.get("modules_to_not_convert") else "ignored_layers"
    exponents = said.get("scale_fmt") == "ue8m0"
    return Quantisation("fp8", _modules(said, key), ((re.compile(""), scheme),), exponents)


def _compressed(said: Json) -> Quantisation:
    """compressed-tensors': groups of modules, each with a scheme for weights and for inputs."""
    _only(
        said,
        {"config_groups", "format", "ignore", "quantization_status", "global_compression_ratio",
         "version", "sparsity_config"},
    )  # fmt: skip
    sparsity = said.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"):
        raise _option(said, "sparsity_config")
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _option(said, "config_groups")
    ranked: list[tuple[int, re.Pattern[str], Scheme]] = []
    for name, group in groups.items():
        where = f"config_groups.{name}"
        if not isinstance(group, Mapping):
            raise _option(said, where, group)
        scheme = _group(said, where, group)
        for target in _names(said, f"{where}.targets", group.get("targets")):
            rank = 2 if target == "Linear" else int(target.startswith("re:"))
            pattern = re.compile("") if rank == 2 else _pattern(said, f"{where}.targets", target)
            ranked.append((rank, pattern, scheme))
    ranked.sort(key=lambda entry: entry[0])
    ignored = [_pattern(said, "ignore", n) for n in _names(said, "ignore", said.get("ignore"))]
    return Quantisation(
        "compressed-tensors",
        tuple(ignored),
        tuple((pattern, scheme) for _, pattern, scheme in ranked),
    )


def _group(said: Json, where: str, group: Json) -> Scheme:
    form = group.get("format") or said.get("format")
    if form not in ("float-quantized", "naive-quantized"):
        raise _option(said, f"{where}.format" if group.get("format") else "format", form)
    if group.get("output_activations"):
        raise _option(said, f"{where}.output_activations", group["output_activations"])
    weights, inputs = group.get("weights"), group.get("input_activations") or {}
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping):
        raise _option(said, where, group)
    for key, served in (
        ("num_bits", (8,)),
        ("type", ("float",)),
        ("strategy", ("tensor", "channel", "block")),
        ("symmetric", (True, None)),
        ("dynamic", (False, None)),
        ("group_size", (None,)),
        ("actorder", (None,)),
    ):
        if weights.get(key) not in served:
            raise _option(said, f"{where}.weights.{key}", weights.get(key))
    block = None
    if weights["strategy"] == "block":
        at = f"{where}.weights.block_structure"
        block = _block(said, weights.get("block_structure"), at)
    static = bool(inputs) and inputs.get("dynamic") is False
    return Scheme((weights["strategy"],), block, static)


def _block(said: Json, size: Any, key: str) -> tuple[int, int]:
    """Rows and columns of a block: two whole numbers, or "128x128" in older files."""
    pair = size
    if isinstance(size, str):
        pair = [int(n) if n.isdecimal() else n for n in size.split("x")]
    sound = isinstance(pair, list | tuple) and len(pair) == 2
    if not sound or any(type(n) is not int or n < 1 for n in pair):
        raise _option(said, key, size)
    return pair[0], pair[1]


def _modules(said: Json, key: str) -> tuple[re.Pattern[str], ...]:
    """transformers' lists: the start of a name up to a dot, as a pattern, or the name's end."""
    patterns = []
    for name in _names(said, key, said.get(key)):
        patterns.append(_compiled(said, key, name, rf"(?:{name})(?:\.|$|(?<=\.))"))
        patterns.append(re.compile(rf".*{re.escape(name)}$"))
    return tuple(patterns)


def _pattern(said: Json, key: str, name: str) -> re.Pattern[str]:
    """compressed-tensors' names: a pattern after "re:", else one module's whole name."""
    if name.startswith("re:"):
        return _compiled(said, key, name, name.removeprefix("re:"))
    return re.compile(re.escape(name) + "$")


def _compiled(said: Json, key: str, name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise _option(said, key, name) from error


def _names(said: Json, key: str, given: Any) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(name, str) and name for name in given):
        raise _option(said, key, given)
    return given


def _only(said: Json, known: Collection[str]) -> None:
    """Refuse an option that is switched on and not known: it may change what a weight means."""
    for key, value in said.items():
        if key not in known and key not in _LOADING and value:
            raise _option(said, key)


def _option(said: Json, key: str, value: Any = ...) -> ConfigError:
    given = said.get(key) if value is ... else value
    return ConfigError(
        f"config.json: {_KEY}.{key} {given!r} is not served with {said['quant_method']}",
        hint=f"{CURE}; if only a tool has left the key there, take it out",
    )


def _refusal(said: Any, where: str) -> ConfigError:
    return ConfigError(
        f"model.path: the model is quantized with {_method(said)} ({where}), "
        "which is not served yet",
        hint=CURE,
    )


def _method(said: Any) -> str:
    """What a quantization's own configuration calls it; tools differ in where they say so."""
    if not isinstance(said, Mapping):
        return repr(said)
    places = [said, *(value for value in said.values() if isinstance(value, Mapping))]
    for key in _METHODS:
        for place in places:
            if isinstance(place.get(key), str):
                return str(place[key])
    bits = next((place["bits"] for place in places if "bits" in place), None)
    return "an unnamed method" if bits is None else f"{bits} bits a weight"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # that the file is there says enough
