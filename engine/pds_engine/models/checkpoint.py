"""A folder of safetensors: reading the tensors a rank needs, and only their rows and columns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pds_engine.errors import ConfigError
from pds_engine.models import dequantized
from pds_engine.models.dequantized import Fp8
from pds_engine.models.files import weight_files
from pds_engine.models.headers import Stored
from pds_engine.models.mapped import MappedFiles

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
        paths = {stored.path for stored in contents.values()}
        paths |= {stored.scale.tensor.path for stored in contents.values() if stored.scale}
        self._files = MappedFiles(sorted(paths))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._contents

    def read(self, name: str, dtype: torch.dtype, *parts: range | None) -> Tensor:
        """Tensor `name` in `dtype`, contiguous and of its own memory.

        `parts` are ranges of its dimensions from the first on; a None and those left out stand for
        whole dimensions. Only these bytes of the file are read, and of a quantized weight only the
        scales of these numbers. Its numbers times their scales are computed in float32 and then
        rounded to `dtype`. Beside the result no more than the part as it is stored, and one matrix
        of it in float32, is held.

        Raises:
            ConfigError: a value that is read is not a finite number, or is too large for `dtype`.
            ValueError: a range is not of the tensor, or has gaps.
        """
        stored = self._contents[name]
        ranges = _ranges(name, stored, parts)
        if stored.scale is None:
            return self._rounded(name, self._files.read(stored, ranges), dtype)
        if len(ranges) == 2:
            matrix = dequantized.matrix(self._files, stored, ranges)
            return self._rounded(name, matrix, dtype).contiguous()
        first, *others = ranges
        found = torch.empty([len(part) for part in ranges], dtype=dtype)
        for index, place in enumerate(first):
            one = (range(place, place + 1), *others)
            matrix = dequantized.matrix(self._files, stored, one)
            found[index] = self._rounded(name, matrix, dtype)
        return found

    def has_fp8(self, name: str) -> bool:
        """Whether it is stored in FP8, with scales of blocks."""
        stored = self._contents[name]
        blocks = stored.scale is not None and not isinstance(stored.scale.block, str)
        return stored.dtype == dequantized.FP8 and blocks

    def read_fp8(self, name: str, *parts: range | None) -> Fp8 | None:
        """As `read`, but FP8 numbers and their scales as they are stored.

        None: the weight is not stored in FP8, or a range cuts through its blocks. `read` then gives
        the weight.

        Raises:
            ConfigError: a number or a scale that is read is NaN or infinite.
            ValueError: a range is not of the tensor, or has gaps.
        """
        stored = self._contents[name]
        found = dequantized.kept(self._files, stored, _ranges(name, stored, parts))
        # 0x7F and 0xFF are FP8's only codes that are not numbers
        if found and (
            (found.weight.view(torch.uint8) & 0x7F == 0x7F).any()
            or not finite(found.scale.float() * torch.finfo(found.weight.dtype).max)
        ):
            raise self._not_finite(name)
        return found

    def _rounded(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = tensor.to(dtype)
        if finite(rounded):
            return rounded
        if finite(tensor):
            raise ConfigError(
                f"model.path: {name} in {self._contents[name].path} has values too large for "
                f"{dtype}",
                hint="set model.dtype to bfloat16 or float32",
            )
        raise self._not_finite(name)

    def _not_finite(self, name: str) -> ConfigError:
        return ConfigError(
            f"model.path: {name} in {self._contents[name].path} holds values that are no finite "
            "numbers",
            hint="the checkpoint is damaged, or its training diverged: take another",
        )


def _ranges(name: str, stored: Stored, parts: Sequence[range | None]) -> tuple[range, ...]:
    """One range for each dimension."""
    given = (*parts, *[None] * (len(stored.shape) - len(parts)))
    ranges = tuple(
        range(size) if part is None else part
        for size, part in zip(stored.shape, given, strict=True)
    )
    for size, part in zip(stored.shape, ranges, strict=True):
        if part.step != 1 or part.start < 0 or max(part.start, part.stop) > size:
            raise ValueError(f"{part} of {name}, which has shape {stored.shape}")
    return ranges


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
