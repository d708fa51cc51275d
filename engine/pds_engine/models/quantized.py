"""Whether a model folder says that its weights are quantized: none is served yet. No torch.

What its tensors say is models/tensors.py's part.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pds_engine.errors import ConfigError
from pds_engine.spec import Json

_KEYS = ("quantization_config", "compression_config", "quantization")
"""transformers' and most tools'; an older compressed-tensors'; MLX's."""
_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""ModelOpt's; AutoGPTQ's; AutoAWQ's."""
_METHODS = ("quant_method", "quant_algo", "quantization_status", "kv_cache_quant_algo")
CURE = "serve an unquantized checkpoint: bfloat16, float16 or float32"


def check(folder: Path, config: Json) -> None:
    """Refuse a folder whose configuration says that it is quantized.

    Raises:
        ConfigError: names the method and the file that declares it.
    """
    for key in _KEYS:
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
