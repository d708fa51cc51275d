"""The weight files of a model folder: which they are, and that they can be read. No torch."""

import json
from pathlib import Path

from pds_engine.errors import ConfigError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, in order of name.

    As transformers chooses: model.safetensors, else what the index names; else all there are.

    Raises:
        ConfigError: there are none, or one is missing or may not be read; safetensors itself
            calls both missing.
    """
    files = _named(folder)
    if not files:
        raise _missing(folder / WHOLE)
    for path in files:
        try:
            path.open("rb").close()
        except FileNotFoundError as error:
            raise _missing(path) from error
        except OSError as error:
            raise unreadable(path, error) from error
    return files


def _named(folder: Path) -> list[Path]:
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    index = folder / INDEX
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        files = sorted(folder / name for name in names)
    except FileNotFoundError:
        return sorted(folder.glob("*.safetensors"))
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"model.path: {index} is not a safetensors index") from error
    for path in files:
        if ".." in path.parts or not path.is_relative_to(folder):
            raise ConfigError(
                f"model.path: {index} names {path}, which is outside of the model's folder",
                hint="an index names files beside it: copy the model's own files there",
            )
    return files


def unreadable(path: Path, error: OSError) -> ConfigError:
    """What to say of a file that is there and cannot be read."""
    hint = ""
    if isinstance(error, PermissionError):
        hint = "the engine's user, 65532 in our pods, must be able to read it: chmod -R o+rX"
    return ConfigError(f"model.path: cannot read {path}: {error.strerror}", hint=hint)


def _missing(path: Path) -> ConfigError:
    return ConfigError(
        f"model.path: missing {path}",
        hint="weights are read from *.safetensors; other formats must be converted first",
    )
