"""Norms of heads, rotation and the writing of pages in one pass.

It is bound by memory: each element of the projection is read once, and written once, as a query or
into its page. In plain torch the norm reads and writes queries and keys, the rotation does so
again, and another pass copies keys and values to their pages.
"""

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.rope.plan import Geometry, RotateAndWrite, check
from pds_kernels.rope.tuning import WIDEST, tile


def serves(geometry: Geometry) -> bool:
    """Heads of any number of dimensions that a program can hold, rotated in whole or in part."""
    return geometry.head_dim <= WIDEST and geometry.rotated >= 2


def make(geometry: Geometry) -> RotateAndWrite:
    """Nothing is kept from call to call."""
    return partial(rotate_and_write, geometry)


def rotate_and_write(
    geometry: Geometry,
    qkv: Tensor,
    rows: Tensor,
    norm: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write_slots: Tensor,
) -> Tensor:
    """plan.RotateAndWrite, once `geometry` is given."""
    check(geometry, norm)
    tokens, dim = len(qkv), geometry.head_dim
    every = geometry.heads + 2 * geometry.kv_heads
    q = qkv.new_empty(tokens, geometry.heads, dim)
    rest = dim - geometry.rotated
    cut = tile(every, triton.next_power_of_2(dim), geometry.dtype)
    launch(
        rotate_heads,
        (tokens, triton.cdiv(every, cut.heads)),
        qkv,
        rows,
        qkv if norm is None else norm,
        write_slots,
        q,
        keys,
        values,
        qkv.stride(0),
        rows.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        heads=geometry.heads,
        kv_heads=geometry.kv_heads,
        head_dim=dim,
        half=geometry.rotated // 2,
        page_size=geometry.page_size,
        normed=norm is not None,
        eps=geometry.norm_eps or 0.0,
        tile=cut.heads,
        pair_block=triton.next_power_of_2(geometry.rotated // 2),
        rest_block=triton.next_power_of_2(rest) if rest else 0,
        num_warps=cut.warps,
    )
    return q


@triton.jit
def rotate_heads(
    qkv_at,
    rows_at,
    norm_at,
    slots_at,
    q_at,
    keys_at,
    values_at,
    stride,
    rows_stride,
    key_page,
    key_head,
    key_place,
    value_page,
    value_head,
    value_place,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    half: tl.constexpr,
    page_size: tl.constexpr,
    normed: tl.constexpr,
    eps: tl.constexpr,
    tile: tl.constexpr,
    pair_block: tl.constexpr,
    rest_block: tl.constexpr,
):
    """`tile` heads of a token each. A head is loaded as two halves, whose elements are pairs, and
    what is not rotated behind them."""
    both: tl.constexpr = heads + kv_heads
    token = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * tile
    head = begin + tl.arange(0, tile)[:, None]
    pair = tl.arange(0, pair_block)[None, :]
    there = (head < both + kv_heads) & (pair < half)
    head_at = qkv_at + token * stride + head * head_dim
    first = tl.load(head_at + pair, mask=there, other=0.0)
    second = tl.load(head_at + half + pair, mask=there, other=0.0)
    if rest_block > 0:
        behind = tl.arange(0, rest_block)[None, :]
        left = behind < head_dim - 2 * half
        rest = tl.load(head_at + 2 * half + behind, mask=(head < both + kv_heads) & left, other=0.0)
    if normed:
        squares = tl.sum(square(first) + square(second), 1)
        if rest_block > 0:
            squares += tl.sum(square(rest), 1)
        scale = tl.rsqrt(squares / head_dim + eps)[:, None]
        weight_at = norm_at + head * head_dim
        turns = (head < both) & (pair < half)
        first = scaled(first, scale, weight_at + pair, turns)
        second = scaled(second, scale, weight_at + half + pair, turns)
        if rest_block > 0:
            rest = scaled(rest, scale, weight_at + 2 * half + behind, (head < both) & left)
    row_at = rows_at + token * rows_stride + pair
    cos = tl.load(row_at, mask=pair < half, other=0.0)
    sin = tl.load(row_at + half, mask=pair < half, other=0.0)
    one, other = first.to(tl.float32), second.to(tl.float32)
    first = tl.where(head < both, (one * cos - other * sin).to(first.dtype), first)
    second = tl.where(head < both, (other * cos + one * sin).to(second.dtype), second)
    if begin < heads:
        out_at = q_at + token * heads * head_dim + head * head_dim
        keep = head < heads
        put(out_at + pair, first, keep & (pair < half))
        put(out_at + half + pair, second, keep & (pair < half))
        if rest_block > 0:
            put(out_at + 2 * half + behind, rest, keep & left)
    if begin + tile > heads:
        slot = tl.load(slots_at + token)
        page, place = slot // page_size, slot % page_size
        out_at = keys_at + page * key_page + place * key_place + (head - heads) * key_head
        keep = (head >= heads) & (head < both)
        put(out_at + pair, first, keep & (pair < half))
        put(out_at + half + pair, second, keep & (pair < half))
        if rest_block > 0:
            put(out_at + 2 * half + behind, rest, keep & left)
        out_at = values_at + page * value_page + place * value_place + (head - both) * value_head
        keep = (head >= both) & (head < both + kv_heads)
        put(out_at + pair, first, keep & (pair < half))
        put(out_at + half + pair, second, keep & (pair < half))
        if rest_block > 0:
            put(out_at + 2 * half + behind, rest, keep & left)


@triton.jit
def square(x):
    wide = x.to(tl.float32)
    return wide * wide


@triton.jit
def scaled(x, scale, weight_at, turns):
    """x · scale · weight, rounded as the definition rounds, where `turns`; x elsewhere."""
    weight = tl.load(weight_at, mask=turns, other=0.0)
    normed = (x.to(tl.float32) * scale).to(weight.dtype) * weight
    return tl.where(turns, normed.to(x.dtype), x)


@triton.jit
def put(at, x, there):
    tl.store(at, x.to(at.dtype.element_ty), mask=there)
