"""Activations to FP8 on a GPU, for the kernels that multiply it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.fp8.scaling import GREATEST, GROUP
from pds_kernels.launching import launch

TOKENS = 16
"""Of a program, with the 128 columns of a group: 16 numbers a thread of four warps."""
ALIGNED = 4
"""Tokens to which the scales of a group are padded: DeepGEMM reads them by TMA, in 16 bytes."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """As scaling.quantise_activation. Scales of neighbouring tokens lie side by side: their strides
    are 1 and T, rounded up to a multiple of ALIGNED."""
    x = by_rows(x)
    tokens, columns = x.shape
    groups, padded = triton.cdiv(columns, GROUP), triton.cdiv(tokens, ALIGNED) * ALIGNED
    numbers = torch.empty(tokens, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(groups, padded, dtype=torch.float32, device=x.device)
    launch(
        quantise_groups,
        (triton.cdiv(tokens, TOKENS), groups),
        x,
        numbers,
        scales,
        x.stride(0) if tokens > 1 else columns,
        tokens,
        columns=columns,
        greatest=GREATEST,
        by_hand=x.device.type == "cpu",
        block=TOKENS,
        group=GROUP,
        aligned=ALIGNED,
        num_warps=4,
    )
    return numbers, scales.t()[:tokens]


def by_rows(matrix: Tensor) -> Tensor:
    """With the numbers of a row side by side."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


@triton.jit
def fp8_of(number, by_hand: tl.constexpr):
    """float8_e4m3fn, rounded to the nearest, of two to the even one; a NaN stays one.

    A GPU has an instruction for it. The interpreter has none that rounds, so there the bits are put
    together `by_hand`; numbers are within FP8's range.
    """
    if by_hand:
        bits = number.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        moved = tl.abs(number) + 16384.0  # whose last bit counts 2**-9, as FP8's least number does
        small = moved.to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(magnitude < 0x3C800000, small, normal)  # below 2**-6
        code = tl.where(number == number, code, 0x7F) | ((bits >> 24) & 0x80)
        rounded = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        rounded = number.to(tl.float8e4nv)
    return rounded


@triton.jit(do_not_specialize=["tokens"])
def quantise_groups(
    x_at,
    numbers_at,
    scales_at,
    stride,
    tokens,
    columns: tl.constexpr,
    greatest: tl.constexpr,
    by_hand: tl.constexpr,
    block: tl.constexpr,
    group: tl.constexpr,
    aligned: tl.constexpr,
):
    """One group of `block` tokens each. Rows of x lie `stride` apart, those of the result side by
    side; the scales of a group are padded to a multiple of `aligned`."""
    token = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    which = tl.program_id(1)
    column = which * group + tl.arange(0, group)
    there = (token < tokens)[:, None] & (column < columns)[None, :]
    x = tl.load(x_at + token[:, None] * stride + column[None, :], mask=there, other=0.0)
    x = x.to(tl.float32)
    size = tl.where(x == x, tl.abs(x), 0.0)
    scale = tl.div_rn(tl.max(size, 1), greatest)
    scale = tl.where(scale > 0, scale, 1.0)
    numbers = fp8_of(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)), by_hand)
    tl.store(numbers_at + token[:, None] * columns + column[None, :], numbers, mask=there)
    tl.store(
        scales_at + which.to(tl.int64) * (tl.cdiv(tokens, aligned) * aligned) + token,
        scale,
        mask=token < tokens,
    )
