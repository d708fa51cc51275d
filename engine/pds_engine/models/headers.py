"""What safetensors files say that they hold, read by hand: launch imports no torch.

A file is 8 bytes (the header's length, little-endian), the header (a JSON object: each tensor's
dtype, shape and place), and the tensors' bytes. https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pds_engine.errors import ConfigError
from pds_engine.models.files import unreadable

_LONGEST = 100_000_000
"""Bytes of a header that safetensors itself takes."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint. `dtype` as safetensors calls it: F32, BF16, F8_E4M3 …

    A weight with a `scale` is one tensor for whoever asks for it (see models/scales.py): `shape` is
    the plain weight's then, and `dtype` says how its numbers are packed.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Where its first byte is in the file."""
    scale: "Scale | None" = None

    @property
    def length(self) -> int:
        """Bytes in the file; of numbers that are packed (MXFP4) no fewer than there are."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8


Block = tuple[int, int] | Literal["channel", "tensor"]
"""What has one scale: a block of (rows, columns), each row, or the whole matrix."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a weight's stored numbers are multiplied with.

    `tensor` has one number for each `block` of each stored matrix: [.., blocks down, blocks
    across]. Blocks at the lower and the right edge may be cut short.
    """

    tensor: Stored
    block: Block


def read(paths: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of these files, by name.

    Raises:
        ConfigError: a file cannot be read, is damaged or cut short, or two files have a tensor of
            one name.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        for name, stored in _read_one(path).items():
            if name in found:
                raise ConfigError(
                    f"model.path: tensor {name} is in {found[name].path} and in {path}",
                    hint="leave the files of one checkpoint in the folder, or give an index",
                )
            found[name] = stored
    return found


def _read_one(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST, size - 8):
                raise damaged(path, f"its header of {length} bytes does not fit")
            raw = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    held = {name: _tensor(path, start, name, entry) for name, entry in header.items()}
    end = start
    for stored, stop in sorted(held.values(), key=lambda each: (each[0].begin, each[1])):
        if stored.begin != end:
            raise damaged(path, "its tensors overlap, or there are bytes between them")
        end = start + stop
    if end != size:
        raise damaged(path, f"it has {size} bytes, its header says {end}")
    return {name: stored for name, (stored, _) in held.items()}


def _tensor(path: Path, start: int, name: str, entry: Any) -> tuple[Stored, int]:
    """One entry of a header, and where its bytes end, counted from `start` like its offsets."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        bits = math.prod(shape) * _BITS[dtype] if sound and dtype in _BITS else (end - begin) * 8
        sound = sound and isinstance(dtype, str) and -(-bits // 8) == end - begin >= 0
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise damaged(path, f"its header's entry of {name} is not one")
    return Stored(path, dtype, tuple(shape), start + begin), end


def damaged(path: Path, why: str) -> ConfigError:
    """What to say of a weight file that is not what it should be."""
    return ConfigError(
        f"model.path: cannot read {path}: {why}", hint="is the file damaged, or not copied whole?"
    )
