"""Weights of linear layers: in FP8 as they are stored or packed, where a kernel reads them so.

A rank's part of a weight stays in FP8 if it begins and ends where blocks do: its scales are cut as
the weight is. Any other part is made plain: the numbers are the same, in more memory.
"""

from collections.abc import Sequence

import torch
from pds_kernels.activation import Activation
from pds_kernels.fp8 import Fp8Weight

from pds_engine.layers.linear import Matrix
from pds_engine.layers.rope import by_halves
from pds_engine.models.reader import Reader

Part = tuple[str, *tuple[range | None, ...]]
"""The name of a tensor, and ranges of its dimensions."""


def matrix(reader: Reader, *parts: Part, activation: Activation | None = None) -> Matrix:
    """The rows of `parts`, behind one another; `activation`: of the gated block whose first weight
    they are."""
    found = stored(reader, *parts)
    kept = None if found is None else reader.kept(found)
    if kept is not None:
        return kept
    plain = [reader.plain(*part) for part in parts]
    whole = plain[0] if len(plain) == 1 else torch.cat(plain)
    return reader.packed(whole, activation=activation)


def stored(reader: Reader, *parts: Part) -> Fp8Weight | None:
    """The rows of `parts` behind one another, as they are stored in FP8; None: a device that does
    not multiply FP8, a weight that is plain, or blocks that would be cut or have rows of two."""
    return _joined([reader.fp8(*part) for part in parts])


def halved(reader: Reader, part: Part, head_dim: int, first: int, dims: int) -> Matrix:
    """`part`, its rows in the order of layers.rope.by_halves."""
    found = reader.fp8(*part)
    if found is not None and _within_blocks(found, head_dim, first, dims):
        numbers = by_halves(found.weight.view(torch.uint8), head_dim, first, dims)
        kept = reader.kept(found._replace(weight=numbers.view(found.weight.dtype)))
        if kept is not None:
            return kept
    return reader.packed(by_halves(reader.plain(*part), head_dim, first, dims))


def _joined(found: Sequence[Fp8Weight | None]) -> Fp8Weight | None:
    """One weight; None: one of them is plain, or a block would have rows of two."""
    weights = [each for each in found if each is not None]
    if len(weights) < len(found):
        return None
    first = weights[0]
    if len(weights) == 1:
        return first
    whole = all(len(each.weight) % _high(each) == 0 for each in weights[:-1])
    if not whole or any(each.block != first.block for each in weights):
        return None
    numbers = torch.cat([each.weight.view(torch.uint8) for each in weights])
    scales = torch.cat([each.scale for each in weights])
    return Fp8Weight(numbers.view(first.weight.dtype), scales, first.block)


def _within_blocks(weight: Fp8Weight, head_dim: int, first: int, dims: int) -> bool:
    """Whether no row of the reordered sections goes to another block."""
    high = _high(weight)
    begins = range(first, len(weight.weight), head_dim)
    return all(begin // high == (begin + dims - 1) // high for begin in begins)


def _high(weight: Fp8Weight) -> int:
    """Rows of a block."""
    if isinstance(weight.block, str):
        raise ValueError(f"a weight that is kept in FP8 has blocks, not a scale a {weight.block}")
    return weight.block[0]
