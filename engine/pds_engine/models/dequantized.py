"""Quantized weights read from their files: as the plain numbers they stand for, or as they are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pds_kernels import mxfp4
from pds_kernels.fp8 import dequantise
from torch import Tensor

from pds_engine.models.headers import Block, Scale, Stored
from pds_engine.models.mapped import MappedFiles

FP8 = "F8_E4M3"
"""As safetensors calls it."""
_GROUP, _BYTES = 32, 16
"""MXFP4: numbers that share a scale, and the bytes that hold them."""


class Fp8(NamedTuple):
    """A weight in FP8 and what its numbers are multiplied with."""

    weight: Tensor
    """[.., N, K], float8_e4m3fn."""
    scale: Tensor
    """As it is stored: float32, float16, bfloat16 or float8_e8m0fnu. Blocks: [.., ceil(N / rows),
    ceil(K / columns)]; channel: [.., N, 1]; tensor: [.., 1, 1]."""
    block: Block


def matrix(files: MappedFiles, stored: Stored, parts: Sequence[range]) -> Tensor:
    """`parts` of one matrix of a quantized weight, in float32. Leading ranges are of one index."""
    scale = _scale(stored)
    if stored.dtype == "MXFP4":
        return _mxfp4(files, stored, scale, parts)
    *lead, rows, columns = parts
    if not rows or not columns:
        return torch.empty(len(rows), len(columns))
    sizes = _sizes(stored, scale)
    cover = [_cover(part, size) for part, size in zip((rows, columns), sizes, strict=True)]
    weight = files.read(stored, (*lead, *cover)).flatten(0, -2)
    numbers = files.read(scale.tensor, (*lead, *map(_blocks, cover, sizes))).flatten(0, -2)
    found = dequantise(weight, numbers, scale.block, torch.float32)
    first_row, first_column = rows.start - cover[0].start, columns.start - cover[1].start
    return found[first_row:, first_column:]


def kept(files: MappedFiles, stored: Stored, parts: Sequence[range]) -> Fp8 | None:
    """`parts` of an FP8 weight as they are stored; None: it is none, or its blocks would be cut."""
    if stored.dtype != FP8:
        return None
    scale = _scale(stored)
    sizes = _sizes(stored, scale)
    if not uncut(stored.shape[-2:], sizes, parts[-2:]):
        return None
    numbers = files.read(scale.tensor, (*parts[:-2], *map(_blocks, parts[-2:], sizes)))
    return Fp8(files.read(stored, parts), numbers, scale.block)


def uncut(shape: Sequence[int], block: Sequence[int], parts: Sequence[range]) -> bool:
    """Whether `parts` of a matrix of this shape begin and end where its blocks do."""
    return all(
        size >= whole or (part.start % size == 0 and (part.stop % size == 0 or part.stop == whole))
        for part, size, whole in zip(parts, block, shape, strict=True)
    )


def _mxfp4(files: MappedFiles, stored: Stored, scale: Scale, parts: Sequence[range]) -> Tensor:
    """The plain weight is the stored one transposed: groups are along its rows."""
    experts, rows, columns = parts
    groups = _blocks(rows, _GROUP)
    packed = Stored(stored.path, "U8", (*scale.tensor.shape, _BYTES), stored.begin)
    found = mxfp4.dequantise(
        files.read(packed, (experts, columns, groups, range(_BYTES)))[0],
        files.read(scale.tensor, (experts, columns, groups))[0],
        torch.float32,
    )
    first = rows.start - groups.start * _GROUP
    return found[:, first : first + len(rows)].t()


def _scale(stored: Stored) -> Scale:
    if stored.scale is None:
        raise ValueError(f"a weight in {stored.path} has no scale, and is not quantized")
    return stored.scale


def _sizes(stored: Stored, scale: Scale) -> tuple[int, int]:
    """Rows and columns that share a number of the scale."""
    rows, columns = stored.shape[-2:]
    if scale.block == "channel":
        return 1, columns
    if scale.block == "tensor":
        return rows, columns
    return scale.block


def _blocks(part: range, size: int) -> range:
    """Which blocks of `size` a range reaches into."""
    return range(part.start // size, -(-part.stop // size))


def _cover(part: range, size: int) -> range:
    """`part`, begun at a block's border if it reaches into more than one block."""
    return (
        range(part.start - part.start % size, part.stop) if len(_blocks(part, size)) > 1 else part
    )
