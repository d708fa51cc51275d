"""Experts on their rows: two products, and nothing is read back from the device.

How many tiles an expert has is known on the device alone. A first kernel makes a table of them, the
others run as many programs as there can be tiles at most, and those without one end at once. An
expert without rows has no tile, so its weights are not read (Gale et al., "MegaBlocks: Efficient
Sparse Training with Mixture-of-Experts", 2023).

With few rows a step takes as long as the weights of its experts take to arrive: 6 · hidden ·
columns bytes each, in two bytes a number. The weight is the left operand, of which an instruction
takes 64 rows at least; of tokens 16 will do. Programs that run side by side have the same rows and
neighbouring columns, so an expert's weights stay in the second-level cache for its next tile.

Gate and up of the same columns are computed side by side: only their product is written, rounded
once.

Weights in FP8 are read as they are stored, half the bytes. A kernel of its own quantises the rows
of each product. The products of a step are scaled as they are added to a sum in float32, as in
fp8_linear/triton.py.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels import targets
from pds_kernels.fp8 import Fp8Weight, has_fp8
from pds_kernels.fp8.quantising import by_rows, quantise
from pds_kernels.fp8.scaling import GROUP, LEAST_DEPTH, depth_of
from pds_kernels.grouped_gemm.plan import ExpertWeights, Feed, Geometry, Stack, numbers
from pds_kernels.grouped_gemm.tuning import Tile, looked_up, tile, tiles
from pds_kernels.launching import launch

ALPHA = tl.constexpr(1.702)
LIMIT = tl.constexpr(7.0)
"""Of the clamped activation."""
GELU = tl.constexpr(0.7978845608028654)
"""√(2 / π)."""
_MOST_EXPERTS = 1024


def serves(geometry: Geometry) -> bool:
    if geometry.experts >= _MOST_EXPERTS:
        return False
    if geometry.block is None:
        return True
    gpu = geometry.gpu or targets.of(geometry.device)
    return has_fp8(gpu) and depth_of(geometry.block) >= LEAST_DEPTH


def make(geometry: Geometry) -> Feed:
    """Nothing is kept from call to call."""
    return partial(feed, geometry)


def feed(geometry: Geometry, rows: Tensor, counts: Tensor, weights: ExpertWeights) -> Tensor:
    """plan.Feed, once `geometry` is given. On the meta device, where a plan is made, it launches
    the variants for all numbers of rows."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dtype, block = rows.dtype, geometry.block
    cuts = tiles(dtype, block) if rows.is_meta else [tile(dtype, len(counts), len(rows), block)]
    for cut in cuts:
        table = _table(counts, len(rows), cut.tokens)
        _products(geometry, cut, table, rows, weights, out)
    return out


def _products(
    geometry: Geometry, cut: Tile, table: Tensor, rows: Tensor, weights: ExpertWeights, out: Tensor
) -> None:
    (count, hidden), (experts, _, columns) = rows.shape, numbers(weights.down).shape
    gated = rows.new_empty(count, columns)
    high, wide = geometry.block or (0, 0)
    shared: dict[str, object] = {
        "high": high,
        "wide": wide,
        "group": GROUP,
        "hidden": hidden,
        "columns": columns,
        "precision": "ieee" if rows.dtype == torch.float32 else "tf32",
        "block_t": cut.tokens,
        "depth": cut.depth,
        "num_warps": cut.warps,
        "num_stages": cut.stages,
    }
    x, x_scales = _operand(geometry, rows)
    launch(
        gate_and_up,
        (len(table) * triton.cdiv(columns, cut.gated),),
        table,
        x,
        x_scales,
        *_stored(weights.gate_up, weights.gate_up_bias),
        gated,
        x.stride(0) if count > 1 else hidden,  # that of a lone row may be anything
        x_scales.stride(1),
        experts,
        activation=geometry.activation,
        biased=weights.gate_up_bias is not None,
        block_n=cut.gated,
        **shared,
    )
    x, x_scales = _operand(geometry, gated)
    launch(
        down,
        (len(table) * triton.cdiv(hidden, cut.hidden),),
        table,
        x,
        x_scales,
        *_stored(weights.down, weights.down_bias),
        out,
        x_scales.stride(1),
        experts,
        biased=weights.down_bias is not None,
        block_n=cut.hidden,
        **shared,
    )


def _table(counts: Tensor, rows: int, height: int) -> Tensor:
    """[tiles, 4] int32: the expert of each tile, its first row, and one past the expert's last.

    The rows that no expert has come last, as if of an expert `len(counts)`. A tile that is not
    there begins past the rows. There can be no more tiles than this: each expert, and those rows,
    add at most one that is not full.
    """
    experts = len(counts)
    tiles = rows // height + min(experts + 1, rows)
    table = torch.empty(tiles, 4, dtype=torch.int32, device=counts.device)
    padded = triton.next_power_of_2(experts + 1)
    launch(
        list_tiles,
        (triton.cdiv(tiles, looked_up(padded)),),
        counts,
        table,
        rows,
        height,
        tiles,
        experts,
        padded=padded,
        block=looked_up(padded),
        num_warps=4,
    )
    return table


def _operand(geometry: Geometry, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as they are multiplied, and their scales; plain ones stand for scales, too."""
    if geometry.block is None:
        plain = by_rows(rows)
        return plain, plain
    return quantise(rows)


def _stored(stack: Stack, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, their scales and biases. What there is not is stood for by the weights."""
    whole = numbers(stack).contiguous()
    scale = stack.scale.contiguous() if isinstance(stack, Fp8Weight) else whole
    return whole, scale, whole if bias is None else bias.contiguous()


@triton.jit(do_not_specialize=["rows", "height", "tiles", "experts"])
def list_tiles(
    counts_at,
    table_at,
    rows,
    height,
    tiles,
    experts,
    padded: tl.constexpr,
    block: tl.constexpr,
):
    """`block` entries of the table each: where it is that the tiles before an expert end."""
    expert = tl.arange(0, padded)
    count = tl.load(counts_at + expert, mask=expert < experts, other=0).to(tl.int32)
    count = tl.where(expert == experts, rows - tl.sum(count, 0), count)
    end = tl.cumsum(count, 0)
    tiles_end = tl.cumsum((count + height - 1) // height, 0)
    index = tl.program_id(0) * block + tl.arange(0, block)
    before = tiles_end[None, :] <= index[:, None]
    which = tl.sum(before.to(tl.int32), 1)
    mine = expert[None, :] == which[:, None]
    tiles_before = tl.max(tl.where(before, tiles_end[None, :], 0), 1)
    start = tl.max(tl.where(before, end[None, :], 0), 1)
    first = start + (index - tiles_before) * height
    last = tl.sum(tl.where(mine, end[None, :], 0), 1)
    there = index < tiles
    tl.store(table_at + index * 4, which, mask=there)
    tl.store(table_at + index * 4 + 1, first, mask=there)
    tl.store(table_at + index * 4 + 2, last, mask=there)


@triton.jit
def activated(gate, up, activation: tl.constexpr):
    """float32 → float32."""
    if activation == "silu":
        result = gate * tl.sigmoid(gate) * up
    elif activation == "gelu_tanh":
        inner = GELU * (gate + 0.044715 * gate * gate * gate)
        result = gate * tl.sigmoid(2 * inner) * up  # (1 + tanh(x)) / 2 = sigmoid(2x)
    else:
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        result = (up + 1) * (gate * tl.sigmoid(gate * ALPHA))
    return result


@triton.jit
def scaled(weight, x, scale, x_scale):
    """The product of FP8 numbers in float32. scale: [rows of the weight]; x_scale: [rows of x]."""
    return tl.dot(weight, x) * (scale[:, None] * x_scale[None, :])


@triton.jit(do_not_specialize=["x_scales_stride", "experts"])
def gate_and_up(
    table_at,
    rows_at,
    x_scales_at,
    weight_at,
    scale_at,
    bias_at,
    out_at,
    stride,
    x_scales_stride,
    experts,
    hidden: tl.constexpr,
    columns: tl.constexpr,
    high: tl.constexpr,
    wide: tl.constexpr,
    group: tl.constexpr,
    activation: tl.constexpr,
    biased: tl.constexpr,
    precision: tl.constexpr,
    block_t: tl.constexpr,
    block_n: tl.constexpr,
    depth: tl.constexpr,
):
    """A tile of `block_t` rows and `block_n` columns each. Rows lie `stride` apart.

    `high` by `wide` of a weight in FP8 has a scale, and `group` columns of a row; 0: it is plain.
    """
    parts: tl.constexpr = (columns + block_n - 1) // block_n
    entry = table_at + tl.program_id(0) // parts * 4
    expert, first, last = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    if expert < experts:
        row = first.to(tl.int64) + tl.arange(0, block_t)
        column = tl.program_id(0) % parts * block_n + tl.arange(0, block_n)
        has_row, has_column = row < last, column < columns
        step = tl.arange(0, depth)
        x_at = rows_at + row[None, :] * stride + step[:, None]
        line = expert.to(tl.int64) * (2 * columns) + column
        gate_at = weight_at + line[:, None] * hidden + step[None, :]
        if high > 0:
            across: tl.constexpr = (hidden + wide - 1) // wide
            of_expert = expert.to(tl.int64) * ((2 * columns + high - 1) // high)
            gate_scale_at = scale_at + (of_expert + column // high) * across
            up_scale_at = scale_at + (of_expert + (columns + column) // high) * across
        gate = tl.zeros([block_n, block_t], tl.float32)
        up = tl.zeros([block_n, block_t], tl.float32)
        for begin in range(0, hidden, depth):
            within = begin + step < hidden
            x = tl.load(x_at + begin, mask=has_row[None, :] & within[:, None], other=0.0)
            there = has_column[:, None] & within[None, :]
            of_gate = tl.load(gate_at + begin, mask=there, other=0.0)
            of_up = tl.load(gate_at + (columns * hidden + begin), mask=there, other=0.0)
            if high > 0:
                x_scale_at = x_scales_at + begin // group * x_scales_stride + row
                x_scale = tl.load(x_scale_at, mask=has_row, other=0.0)
                gate_scale = tl.load(gate_scale_at + begin // wide, mask=has_column, other=0.0)
                up_scale = tl.load(up_scale_at + begin // wide, mask=has_column, other=0.0)
                gate += scaled(of_gate, x, gate_scale, x_scale)
                up += scaled(of_up, x, up_scale, x_scale)
            else:
                gate = tl.dot(of_gate, x, gate, input_precision=precision)
                up = tl.dot(of_up, x, up, input_precision=precision)
        if biased:
            gate += tl.load(bias_at + line, mask=has_column, other=0.0).to(tl.float32)[:, None]
            line += columns
            up += tl.load(bias_at + line, mask=has_column, other=0.0).to(tl.float32)[:, None]
        out = tl.trans(activated(gate, up, activation)).to(out_at.dtype.element_ty)
        there = has_row[:, None] & has_column[None, :]
        tl.store(out_at + row[:, None] * columns + column[None, :], out, mask=there)


@triton.jit(do_not_specialize=["x_scales_stride", "experts"])
def down(
    table_at,
    gated_at,
    x_scales_at,
    weight_at,
    scale_at,
    bias_at,
    out_at,
    x_scales_stride,
    experts,
    hidden: tl.constexpr,
    columns: tl.constexpr,
    high: tl.constexpr,
    wide: tl.constexpr,
    group: tl.constexpr,
    biased: tl.constexpr,
    precision: tl.constexpr,
    block_t: tl.constexpr,
    block_n: tl.constexpr,
    depth: tl.constexpr,
):
    """A tile of `block_t` rows and `block_n` columns each; zeros where no expert has the rows."""
    parts: tl.constexpr = (hidden + block_n - 1) // block_n
    entry = table_at + tl.program_id(0) // parts * 4
    expert, first, last = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    row = first.to(tl.int64) + tl.arange(0, block_t)
    column = tl.program_id(0) % parts * block_n + tl.arange(0, block_n)
    has_row, has_column = row < last, column < hidden
    out_at += row[:, None] * hidden + column[None, :]
    there = has_row[:, None] & has_column[None, :]
    if expert < experts:
        step = tl.arange(0, depth)
        x_at = gated_at + row[None, :] * columns + step[:, None]
        line = expert.to(tl.int64) * hidden + column
        line_at = weight_at + line[:, None] * columns + step[None, :]
        if high > 0:
            across: tl.constexpr = (columns + wide - 1) // wide
            of_expert = expert.to(tl.int64) * ((hidden + high - 1) // high)
            line_scale_at = scale_at + (of_expert + column // high) * across
        total = tl.zeros([block_n, block_t], tl.float32)
        for begin in range(0, columns, depth):
            within = begin + step < columns
            x = tl.load(x_at + begin, mask=has_row[None, :] & within[:, None], other=0.0)
            known = has_column[:, None] & within[None, :]
            weight = tl.load(line_at + begin, mask=known, other=0.0)
            if high > 0:
                x_scale_at = x_scales_at + begin // group * x_scales_stride + row
                x_scale = tl.load(x_scale_at, mask=has_row, other=0.0)
                line_scale = tl.load(line_scale_at + begin // wide, mask=has_column, other=0.0)
                total += scaled(weight, x, line_scale, x_scale)
            else:
                total = tl.dot(weight, x, total, input_precision=precision)
        if biased:
            total += tl.load(bias_at + line, mask=has_column, other=0.0).to(tl.float32)[:, None]
        tl.store(out_at, tl.trans(total).to(out_at.dtype.element_ty), mask=there)
    elif first < last:
        zeros = tl.zeros([block_t, block_n], out_at.dtype.element_ty)
        tl.store(out_at, zeros, mask=there)
