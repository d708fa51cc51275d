"""A folder of safetensors: reading the tensors a rank needs, and only their rows and columns."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pds_engine.errors import ConfigError
from pds_engine.models.files import weight_files

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_COSMETIC = ("transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path")
"""Keys of config.json that do not change what the model computes."""


class Checkpoint:
    """The open safetensors files of a model folder; a context manager.

    Raises:
        ConfigError: there are none, or one is missing or unreadable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = weight_files(folder)
        self._stack = ExitStack()
        self._where: dict[str, tuple[Any, Path]] = {}
        for path in self.files:
            try:
                opened = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"model.path: cannot read {path}: {error}") from error
            self._where.update(dict.fromkeys(opened.keys(), (opened, path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(
        self, name: str, shape: tuple[int, ...], dim: int = 0, part: range | None = None
    ) -> Tensor:
        """Tensor `name`, of whole shape `shape`; only `part` of its dimension `dim` is read.

        Raises:
            ConfigError: there is no such tensor, or it has another shape.
        """
        if name not in self._where:
            raise ConfigError(f"model.path: {self.folder} has no tensor {name}")
        opened, path = self._where[name]
        stored = opened.get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise ConfigError(
                f"model.path: {name} in {path} has shape {tuple(stored.get_shape())}, "
                f"config.json says {shape}"
            )
        if part is None:
            tensor = opened.get_tensor(name)
        elif dim == 0:
            tensor = stored[part.start : part.stop]
        else:
            tensor = stored[:, part.start : part.stop]
        if not isinstance(tensor, Tensor) or not torch.is_floating_point(tensor):
            raise ConfigError(f"model.path: {name} in {path} is not a floating-point tensor")
        return tensor


def digest(folder: Path, config: dict[str, Any]) -> str:
    """A cheap digest of a model's content, for the KV fingerprint: 32 hexadecimal digits.

    Covers config.json (but for keys that change nothing), and of each weight file its size, its
    header (names, shapes, dtypes) and 64 samples of 4 KiB spread over its data. Two fine-tunings
    of one model differ in nearly every byte, so samples tell them apart without reading gigabytes.
    """
    kept = {key: value for key, value in config.items() if key not in _COSMETIC}
    total = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for path in weight_files(folder):
        with path.open("rb") as file:
            size = path.stat().st_size
            header = file.read(min(int.from_bytes(file.read(8), "little"), size))
            total.update(size.to_bytes(8, "little") + header)
            start = file.tell()
            room = max(0, size - start - _SAMPLE_BYTES)
            for sample in range(_SAMPLES):
                file.seek(start + room * sample // (_SAMPLES - 1))
                total.update(file.read(_SAMPLE_BYTES))
    return total.hexdigest()[:32]
