"""Between FP8 and other dtypes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.fp8.weight import Block, Fp8Weight

GROUP = 128
"""How many columns of an activation share a scale."""
LEAST_DEPTH = 32
"""Columns that a tensor core's instruction for FP8 multiplies."""
GREATEST = torch.finfo(torch.float8_e4m3fn).max


def dequantise(weight: Tensor, scale: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """weight · scale in `dtype`, multiplied in float32 and rounded once.

    weight: [..., N, K] float8_e4m3fn; scale and block: as Fp8Weight has them, with the same leading
    dimensions. Besides the result, memory is taken for one row of blocks alone.

    Raises:
        ValueError: the scale's shape does not fit the weight and the block.
    """
    rows, columns = weight.shape[-2:]
    factors = fitted(weight, scale, block).float()
    if isinstance(block, str):
        return (weight.float() * factors).to(dtype)
    high, wide = block
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for index, begin in enumerate(range(0, rows, high)):
        part = slice(begin, min(begin + high, rows))
        of_row = factors[..., index, :].repeat_interleave(wide, -1)[..., None, :columns]
        out[..., part, :] = weight[..., part, :].float() * of_row
    return out


def quantise_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 numbers [T, K] and their scales [T, ⌈K / 128⌉] float32: x ≈ numbers · scales, where each
    128 columns of a token have a scale by which the greatest becomes the greatest of FP8."""
    tokens, columns = x.shape
    groups = -(-columns // GROUP)
    padded = x.new_zeros(tokens, groups * GROUP, dtype=torch.float32)
    padded[:, :columns] = x
    grouped = padded.view(tokens, groups, GROUP)
    scales = grouped.abs().amax(-1) / GREATEST
    scales = torch.where(scales > 0, scales, 1.0)
    numbers = (grouped / scales.unsqueeze(-1)).clamp(-GREATEST, GREATEST).flatten(1)[:, :columns]
    return numbers.to(torch.float8_e4m3fn), scales


def multiply_quantised(x: Tensor, weight: Fp8Weight) -> Tensor:
    """x · weightᵀ in x's dtype, where x [T, K] is quantised in groups: the products are those of
    FP8 numbers, and the sums are in float32."""
    numbers, scales = quantise_activation(x)
    rounded = numbers.float() * scales.repeat_interleave(GROUP, 1)[:, : x.shape[1]]
    return F.linear(rounded, dequantise(*weight, torch.float32)).to(x.dtype)


def depth_of(block: Block) -> int:
    """The most columns, a power of two, that one scale of the weight and of x covers always."""
    if isinstance(block, str):
        return GROUP
    wide = block[1]
    return min(wide & -wide, GROUP)


def fitted(weight: Tensor, scale: Tensor, block: Block) -> Tensor:
    """`scale` with all its dimensions: a channel's may come without the last, a whole tensor's
    without two.

    Raises:
        ValueError: its shape does not fit the weight and the block.
    """
    rows, columns = weight.shape[-2:]
    match block:
        case "tensor":
            counts, spare = (1, 1), 2
        case "channel":
            counts, spare = (rows, 1), 1
        case (high, wide):
            counts, spare = (-(-rows // high), -(-columns // wide)), 0
    shape = (*weight.shape[:-2], *counts)
    if scale.shape in [shape[: len(shape) - dropped] for dropped in range(spare + 1)]:
        return scale.reshape(shape)
    raise ValueError(
        f"a scale of shape {list(scale.shape)} does not fit a weight of shape"
        f" {list(weight.shape)} with block={block}: it takes {list(shape)}"
    )
