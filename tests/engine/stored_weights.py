"""Quantized weights for tests: their numbers, their scales, and what they stand for.

The plain weight is written down number by number here, by indices: nothing is shared with how the
engine computes it.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def fp8(*shape: int, seed: int = 0) -> Tensor:
    """FP8 numbers of every code that is one."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 127, shape, generator=generator)
    signs = torch.randint(0, 2, shape, generator=generator) * 128
    return (codes + signs).to(torch.uint8).view(E4M3)


def scales(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Scales whose products with FP8 numbers need rounding: 0.001 … 0.011."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) / 100 + 0.001).to(dtype)


def plain(weight: Tensor, scale: Tensor, block: Sequence[int]) -> Tensor:
    """Number (.., i, j) of `weight` times number (.., i // rows, j // columns) of `scale`."""
    found = torch.empty(weight.shape)
    numbers, factors = weight.float(), scale.float()
    for *lead, i, j in itertools.product(*map(range, weight.shape)):
        place = (*lead, i // block[0], j // block[1])
        found[(*lead, i, j)] = numbers[(*lead, i, j)] * factors[place]
    return found


def mxfp4(experts: int, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Blocks and scales of every code, and of exponents from -12 to 12."""
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), generator=generator)
    exponents = torch.randint(115, 140, (experts, rows, groups), generator=generator)
    return blocks.to(torch.uint8), exponents.to(torch.uint8)
