"""Normalisation and the sum before it in one pass: the row is read once and stays in registers."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.rms_norm.plan import Geometry, Norm

WIDEST = 1 << 15
"""Columns of a row that the registers of a block hold."""


def serves(geometry: Geometry) -> bool:
    return geometry.hidden <= WIDEST


def make(geometry: Geometry) -> Norm:
    """Nothing is kept from call to call."""
    return partial(norm, geometry)


def norm(
    geometry: Geometry, x: Tensor, weight: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """plan.Norm, once `geometry` is given."""
    rows, hidden = x.shape
    total = x if residual is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    launch(
        norm_rows,
        (rows,),
        x,
        x if residual is None else residual,
        weight,
        total,
        normed,
        x.stride(0),
        hidden,
        geometry.eps,
        adds=residual is not None,
        block=block,
        num_warps=min(max(block // 1024, 1), 16),
    )
    return total, normed


@triton.jit
def norm_rows(
    x_at,
    residual_at,
    weight_at,
    total_at,
    normed_at,
    stride,
    hidden: tl.constexpr,
    eps: tl.constexpr,
    adds: tl.constexpr,
    block: tl.constexpr,
):
    """A row each. Rows of `x` lie `stride` apart, those of the others side by side."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    there = column < hidden
    x = tl.load(x_at + row * stride + column, mask=there, other=0.0)
    if adds:
        x = x + tl.load(residual_at + row * hidden + column, mask=there, other=0.0)
        tl.store(total_at + row * hidden + column, x, mask=there)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)
    weight = tl.load(weight_at + column, mask=there, other=0.0)
    normed = (wide * scale).to(weight.dtype) * weight
    tl.store(normed_at + row * hidden + column, normed.to(x.dtype), mask=there)
