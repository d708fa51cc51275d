"""Reading a model folder's config.json, key by key. No torch."""

import json
from pathlib import Path
from typing import Any

from pds_engine.errors import ConfigError
from pds_engine.spec import Json

MOST = 2**31 - 1
"""No size of a model is above it; a damaged one must not exhaust memory while it is judged."""
_LEAST, _GREATEST = 1e-30, 1e30
"""Of any other number: what is computed of it in float32 is then still a number."""


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model.path: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model.path: {path} is not a JSON object")
    return config


def flag(config: Json, key: str, *, missing: bool = False) -> bool:
    """`key` as true or false.

    Raises:
        ConfigError: it is neither.
    """
    value = config.get(key, missing)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} must be true or false, got {value!r}")
    return value


def whole(
    config: Json,
    key: str,
    *,
    missing: int | None = None,
    null: int | None = None,
    most: int = MOST,
) -> int:
    """`key` as a whole number above 0; `missing` where it is not there, `null` where it says none.

    Raises:
        ConfigError: it is none, or above `most`.
    """
    value = config.get(key, missing)
    if value is None:
        value = null
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {key} must be a whole number above 0, got {value!r}")
    if value > most:
        raise ConfigError(f"config.json: {key} must be at most {most}, got {value!r}")
    return value


def count(config: Json, key: str, *, missing: int = 0, most: int = MOST) -> int:
    """`key` as a number of layers, which may be 0; `missing` where it is not there.

    Raises:
        ConfigError: it is none, or above `most`.
    """
    value = config.get(key, missing)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ConfigError(f"config.json: {key} must be a whole number of layers, got {value!r}")
    return value


def number(config: Json, key: str, *, missing: float | None = None) -> float:
    """`key` as a number above 0; `missing` where it is not there.

    Raises:
        ConfigError: it is none, or so small or great that float32 cannot compute with it.
    """
    value = config.get(key, missing)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value > 0:
        raise ConfigError(f"config.json: {key} must be a number above 0, got {value!r}")
    if not _LEAST <= value <= _GREATEST:
        raise ConfigError(
            f"config.json: {key} must be between {_LEAST} and {_GREATEST}, got {value!r}"
        )
    return float(value)
