"""A folder of safetensors: reading the tensors a rank needs, and only their rows and columns."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pds_engine.errors import ConfigError
from pds_engine.models.files import weight_files
from pds_engine.models.headers import Stored

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_COSMETIC = ("transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path")
"""Keys of config.json that do not change what the model computes."""


class Checkpoint:
    """The open safetensors files of what `tensors.contents` found; a context manager.

    Raises:
        ConfigError: one is unreadable.
    """

    def __init__(self, contents: Mapping[str, Stored]) -> None:
        self._contents = contents
        self._stack = ExitStack()
        self._opened: dict[Path, Any] = {}
        for path in sorted({stored.path for stored in contents.values()}):
            try:
                self._opened[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"model.path: cannot read {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._contents

    def read(
        self, name: str, dtype: torch.dtype, dim: int = 0, part: range | None = None
    ) -> Tensor:
        """Tensor `name` in `dtype`; only `part` of its dimension `dim` is read.

        Raises:
            ConfigError: a value that is read is not a finite number, or is too large for `dtype`.
        """
        path = self._contents[name].path
        opened = self._opened[path]
        if part is None:
            tensor = opened.get_tensor(name)
        elif dim == 0:
            tensor = opened.get_slice(name)[part.start : part.stop]
        else:
            tensor = opened.get_slice(name)[:, part.start : part.stop]
        rounded: Tensor = tensor.to(dtype)
        if finite(rounded):
            return rounded
        if finite(tensor):
            raise ConfigError(
                f"model.path: {name} in {path} has values too large for {dtype}",
                hint="set model.dtype to bfloat16 or float32",
            )
        raise ConfigError(
            f"model.path: {name} in {path} holds values that are no finite numbers",
            hint="the checkpoint is damaged, or its training diverged: take another",
        )


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it, by one pass over it: both show in extremes.

    A tensor without elements is finite.
    """
    if not tensor.numel():
        return True
    least, most = tensor.aminmax()
    return bool(least.isfinite() & most.isfinite())


def digest(folder: Path, config: dict[str, Any]) -> str:
    """A cheap digest of a model's content, for the KV fingerprint: 32 hexadecimal digits.

    Covers config.json (without keys that change nothing), and each weight file's size, header
    (names, shapes, dtypes) and 64 samples of 4 KiB, spread over its data. Two fine-tunings
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
