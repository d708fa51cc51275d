"""The gated activation in one pass.

It is bound by memory: 2·C elements of each row are read and C are written, each once. The two plain
operations of torch read 4·C and write 2·C.
"""

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.activation.plan import ALPHA, LIMIT, Gated, Geometry
from pds_kernels.activation.tuning import tile
from pds_kernels.launching import launch


def serves(_: Geometry) -> bool:
    """Any number of columns, and any floating point dtype."""
    return True


def make(geometry: Geometry) -> Gated:
    """Nothing is kept from call to call."""
    return partial(gated, geometry)


def gated(geometry: Geometry, gate_up: Tensor) -> Tensor:
    """plan.Gated, once `geometry` is given."""
    rows, columns = len(gate_up), geometry.columns
    out = gate_up.new_empty(rows, columns)
    cut = tile(columns, geometry.dtype)
    launch(
        gate_rows,
        (rows, triton.cdiv(columns, cut.columns)),
        gate_up,
        out,
        gate_up.stride(0),
        columns=columns,
        activation=geometry.activation,
        alpha=ALPHA,
        limit=LIMIT,
        block=cut.columns,
        num_warps=cut.warps,
    )
    return out


@triton.jit
def gate_rows(
    gate_up_at,
    out_at,
    stride,
    columns: tl.constexpr,
    activation: tl.constexpr,
    alpha: tl.constexpr,
    limit: tl.constexpr,
    block: tl.constexpr,
):
    """A part of a row each. Rows of `gate_up` lie `stride` apart, those of `out` side by side."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    there = column < columns
    place = gate_up_at + row * stride + column
    gate = tl.load(place, mask=there, other=0.0).to(tl.float32)
    up = tl.load(place + columns, mask=there, other=0.0).to(tl.float32)
    if activation == "silu":
        found = gate * sigmoid(gate) * up
    elif activation == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2u); √(8/π) · (x + 0.044715 · x³) is 2u
        found = gate * sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up
    else:
        gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
        found = (up + 1) * (gate * sigmoid(alpha * gate))
    tl.store(out_at + row * columns + column, found.to(out_at.dtype.element_ty), mask=there)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without an exponential that overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)
