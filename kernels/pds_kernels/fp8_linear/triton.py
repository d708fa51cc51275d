"""Linear layers of FP8 weights, which are read as they are stored: a byte a number.

A step of few tokens takes as long as its weight takes to arrive: rows · columns bytes, half of what
bfloat16 would need. Where it has too few rows to occupy all multiprocessors, its columns are cut
into pieces, whose sums are kept in float32 and added in order. A step of many tokens is bound by
the tensor cores, and FP8 is twice as fast there. The weight is the left operand, of which an
instruction takes 64 rows at least; of tokens 16 will do.

With quantised activations the products of a step are summed by the tensor core and scaled as they
are added to a sum in float32: it keeps no more than 14 bits of a longer sum (DeepSeek-AI,
"DeepSeek-V3 Technical Report", 2024, section 3.3.2). Else a tile of the weight becomes what x is,
in registers.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels import targets
from pds_kernels.fp8 import Fp8Weight, has_fp8
from pds_kernels.fp8.quantising import by_rows, quantise
from pds_kernels.fp8.scaling import GROUP, LEAST_DEPTH, depth_of, fitted
from pds_kernels.fp8_linear.plan import Geometry, Linear
from pds_kernels.fp8_linear.tuning import (
    ADDED,
    NEIGHBOURS,
    Tile,
    pieces,
    tile,
    tiles,
)
from pds_kernels.launching import launch


def serves(geometry: Geometry) -> bool:
    """One scale must cover what an instruction multiplies."""
    gpu = geometry.gpu or targets.of(geometry.device)
    return has_fp8(gpu) and depth_of(geometry.block) >= LEAST_DEPTH


def make(geometry: Geometry) -> Linear:
    """Nothing is kept from call to call."""
    return partial(linear, geometry)


def linear(geometry: Geometry, x: Tensor, weight: Fp8Weight) -> Tensor:
    """plan.Linear, once `geometry` is given. On the meta device, where a plan is made, it launches
    the variants for all numbers of tokens.

    Raises:
        ValueError: the scale's shape does not fit the weight and the block.
    """
    numbers, scale = by_rows(weight.weight), fitted(*weight)
    if scale.dtype == torch.float8_e8m0fnu:
        scale = scale.view(torch.uint8)  # Triton has no such type
    out = x.new_empty(len(x), len(numbers))
    x, x_scales = quantise(x) if geometry.quantised_activations else (by_rows(x), x)
    exact = Fp8Weight(numbers, scale, weight.block)
    for cut in tiles(geometry) if x.is_meta else [tile(geometry, len(x))]:
        count = pieces(geometry, cut)
        sums = out if count == 1 else out.new_empty(count, *out.shape, dtype=torch.float32)
        _multiply(cut, (x, x_scales), exact, sums)
        if count > 1:
            size = out.numel()
            grid = (triton.cdiv(size, ADDED),)
            launch(add_pieces, grid, sums, out, size, pieces=count, block=ADDED, num_warps=4)
    return out


def _multiply(cut: Tile, quantised: tuple[Tensor, Tensor], weight: Fp8Weight, out: Tensor) -> None:
    """x and its scales, by `weight`, into `out`: [T, N], or [pieces, T, N] float32."""
    x, x_scales = quantised
    numbers, scale, _ = weight
    (tokens, columns), rows = x.shape, len(numbers)
    count = len(out) if out.dim() > 2 else 1
    high, wide = _block(weight)
    launch(
        multiply,
        (triton.cdiv(rows, cut.rows) * triton.cdiv(tokens, cut.tokens), count),
        x,
        x_scales,
        numbers,
        scale,
        out,
        x.stride(0) if tokens > 1 else columns,  # that of a lone row may be anything
        numbers.stride(0),
        scale.stride(0),
        scale.stride(1),
        x_scales.stride(1),
        tokens,
        rows=rows,
        columns=columns,
        high=high,
        wide=wide,
        group=GROUP,
        pieces=count,
        quantised=x.dtype == numbers.dtype,
        precision="ieee" if x.dtype == torch.float32 else "tf32",
        block_t=cut.tokens,
        block_n=cut.rows,
        depth=cut.depth,
        neighbours=NEIGHBOURS,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )


def _block(weight: Fp8Weight) -> tuple[int, int]:
    rows, columns = weight.weight.shape
    if weight.block == "tensor":
        return rows, columns
    return (1, columns) if weight.block == "channel" else weight.block


@triton.jit
def scale_of(at, within):
    """float32. uint8 is an exponent: E8M0, where 255 is NaN and 0 is below float32's normals."""
    scale = tl.load(at, mask=within, other=0)
    if at.dtype.element_ty == tl.uint8:
        exponent = scale.to(tl.int32)
        bits = tl.where(exponent == 0, 1 << 22, exponent << 23)
        number = tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
    else:
        number = scale.to(tl.float32)
    return number


@triton.jit(do_not_specialize=["x_scales_stride", "tokens"])
def multiply(
    x_at,
    x_scales_at,
    weight_at,
    scale_at,
    out_at,
    x_stride,
    weight_stride,
    scale_stride,
    scale_step,
    x_scales_stride,
    tokens,
    rows: tl.constexpr,
    columns: tl.constexpr,
    high: tl.constexpr,
    wide: tl.constexpr,
    group: tl.constexpr,
    pieces: tl.constexpr,
    quantised: tl.constexpr,
    precision: tl.constexpr,
    block_t: tl.constexpr,
    block_n: tl.constexpr,
    depth: tl.constexpr,
    neighbours: tl.constexpr,
):
    """`block_n` rows of the weight by `block_t` tokens each, and of the columns one of `pieces`.
    `high` by `wide` is what has a scale.

    Rows past the weight's and tokens past x's are not read and count zero.
    """
    row_tiles: tl.constexpr = (rows + block_n - 1) // block_n
    token_tiles = tl.cdiv(tokens, block_t)
    program = tl.program_id(0)
    row_tile, token_tile = tl.swizzle2d(
        program // token_tiles, program % token_tiles, row_tiles, token_tiles, neighbours
    )
    row = row_tile * block_n + tl.arange(0, block_n)
    token = token_tile.to(tl.int64) * block_t + tl.arange(0, block_t)
    has_row, has_token = row < rows, token < tokens
    step = tl.arange(0, depth)
    weight_at += row[:, None].to(tl.int64) * weight_stride + step[None, :]
    x_at += token[None, :] * x_stride + step[:, None]
    scale_at += (row // high).to(tl.int64) * scale_stride
    total = tl.zeros([block_n, block_t], tl.float32)
    scale = scale_of(scale_at, has_row)
    share: tl.constexpr = ((columns + depth - 1) // depth + pieces - 1) // pieces * depth
    first = tl.program_id(1) * share if pieces > 1 else 0
    end = tl.minimum(first + share, columns) if pieces > 1 else columns
    for begin in range(first, end, depth):
        within = begin + step < columns
        x = tl.load(x_at + begin, mask=has_token[None, :] & within[:, None], other=0.0)
        weight = tl.load(weight_at + begin, mask=has_row[:, None] & within[None, :], other=0.0)
        if wide < columns:
            scale = scale_of(scale_at + begin // wide * scale_step, has_row)
        if quantised:
            of_token = x_scales_at + begin // group * x_scales_stride + token
            x_scale = tl.load(of_token, mask=has_token, other=0.0)
            total += tl.dot(weight, x) * (scale[:, None] * x_scale[None, :])
        else:
            weight = (weight.to(tl.float32) * scale[:, None]).to(x.dtype)
            total = tl.dot(weight, x, total, input_precision=precision)
    out = tl.trans(total).to(out_at.dtype.element_ty)
    there = has_token[:, None] & has_row[None, :]
    out_at += tl.program_id(1).to(tl.int64) * tokens * rows
    tl.store(out_at + token[:, None] * rows + row[None, :], out, mask=there)


@triton.jit(do_not_specialize=["size"])
def add_pieces(sums_at, out_at, size, pieces: tl.constexpr, block: tl.constexpr):
    """`block` numbers of the result each, of `size`; the sums of a piece lie side by side."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    there = index < size
    total = tl.load(sums_at + index, mask=there, other=0.0)
    for piece in range(1, pieces):
        total += tl.load(sums_at + piece * size + index, mask=there, other=0.0)
    tl.store(out_at + index, total.to(out_at.dtype.element_ty), mask=there)
