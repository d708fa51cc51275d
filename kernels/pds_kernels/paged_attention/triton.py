"""Attention over paged keys and values on GPUs.

One kernel serves both kinds of requests. A program has the heads that share a key, for one token or
for several, and goes once over what they see, with a running softmax (Dao, "FlashAttention-2:
Faster Attention with Better Parallelism and Work Partitioning", 2023). So each key and value is
read once for all queries of the program:

- Single tokens are bound by memory: 2 · context · kv_heads · head_dim numbers a request and layer.
  Contexts are cut into pieces until they fill the GPU (`pds_kernels.tiles`).
- Chunks are bound by arithmetic: with 128 rows a program, each number that is read takes part in
  128 products.

Places that a request has not filled, and those before its window, are not read at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.paged_attention.plan import Attend, Geometry, Prepare, check
from pds_kernels.paged_attention.tuning import Blocks, Tuning, tuning
from pds_kernels.plan import AttentionPlan
from pds_kernels.split_kv import Heads, Listed, Listing, Partial, listed, sms, token_stride
from pds_kernels.tiles import Cutting, cut, room, tiles

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 256
"""Columns of a head whose sums the registers hold."""
_MOST = 64
"""Heads for one key whose sums they hold."""
_WRITTEN = 4096
"""Numbers that a program writes to the pages of keys."""
_LOG2_E = tl.constexpr(1.4426950408889634)


def serves(geometry: Geometry) -> bool:
    fits = geometry.head_dim <= _WIDEST and geometry.heads // geometry.kv_heads <= _MOST
    positive = geometry.scale is None or geometry.scale > 0
    return fits and positive and geometry.dtype in _DTYPES and geometry.kv_dtype in _DTYPES


def make(geometry: Geometry) -> Prepare:
    """Nothing is kept from step to step, but for those that are repeated."""
    return Preparing(geometry, tuning(geometry), sms(geometry.device))


@dataclass(frozen=True, slots=True)
class Preparing:
    """plan.Prepare, and pds_kernels.plan.Repeats."""

    geometry: Geometry
    how: Tuning
    multiprocessors: int

    def __call__(self, plan: AttentionPlan) -> Attend:
        return prepare(self.geometry, self.how, self.multiprocessors, plan)

    def repeated(self, plan: AttentionPlan) -> "_Repeated":
        return _Repeated(self, plan)


def prepare(geometry: Geometry, how: Tuning, multiprocessors: int, plan: AttentionPlan) -> Attend:
    """Cut the step into pieces that fill a GPU of so many `multiprocessors`."""
    requests = range(len(plan.seq_lens_host))
    alone = [each for each in requests if plan.tokens(each) == 1]
    several = [each for each in requests if plan.tokens(each) > 1]
    passes = []
    for blocks, chosen in ((how.decode, alone), (how.extend, several)):
        if chosen:
            heads = _heads(geometry, blocks)
            found = tiles(plan, chosen, blocks.rows // heads.group, geometry.window)
            programs = multiprocessors * blocks.resident
            work = cut(found, Cutting(programs, heads.groups, how.least, blocks.places))
            passes.append(_Pass(blocks, heads, listed(work, geometry.device)))
    return _Attention(geometry, plan, passes)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One kind of requests."""

    blocks: Blocks
    heads: Heads
    work: Listed


class _Repeated:
    """pds_kernels.plan.Repeated."""

    def __init__(self, how: Preparing, plan: AttentionPlan) -> None:
        geometry, blocks = how.geometry, how.how.decode
        heads, programs = _heads(geometry, blocks), how.multiprocessors * blocks.resident
        self._window = geometry.window
        self._cutting = Cutting(programs, heads.groups, how.how.least, blocks.places)
        self._listing = Listing(room(len(plan.write_slots), self._cutting), geometry.device)
        work = _Pass(blocks, heads, self._listing.work)
        # Of no token the host knows that it is a request's: all rows are zero at first.
        self.attend = _Attention(geometry, replace(plan, cu_seqlens_q_host=(0,)), [work])

    def fill(self, plan: AttentionPlan) -> None:
        found = tiles(plan, range(len(plan.seq_lens_host)), 1, self._window)
        self._listing.fill(cut(found, self._cutting))


class _Attention:
    """plan.Attend for one step. Rows of padding tokens are zero."""

    def __init__(self, geometry: Geometry, plan: AttentionPlan, passes: Sequence[_Pass]) -> None:
        self._geometry = geometry
        self._plan = plan
        self._passes = [(each, Partial(each.work, each.heads, geometry.device)) for each in passes]

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None = None,
    ) -> Tensor:
        geometry = self._geometry
        check(geometry, sinks)
        if k is not None and v is not None:
            self._write(k, v, keys, values)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        out[self._plan.cu_seqlens_q_host[-1] :].zero_()
        for each, partial_sums in self._passes:
            self._attend(each, partial_sums, out, q, (keys, values, sinks))
            partial_sums.join(out)
        return out.flatten(1)

    def _write(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> None:
        tokens, heads, dim = k.shape
        block = triton.next_power_of_2(heads * dim)
        many = max(1, _WRITTEN // block)
        launch(
            write_pages,
            (triton.cdiv(tokens, many),),
            k,
            v,
            keys,
            values,
            self._plan.write_slots,
            tokens,
            *(token_stride(k), k.stride(1), token_stride(v), v.stride(1)),
            *keys.stride()[:3],
            *values.stride()[:3],
            page_size=self._geometry.page_size,
            heads=heads,
            dim=dim,
            block=block,
            many=many,
            num_warps=4,
        )

    def _attend(
        self,
        each: _Pass,
        room: Partial,
        out: Tensor,
        q: Tensor,
        layer: tuple[Tensor, Tensor, Tensor | None],
    ) -> None:
        geometry, blocks, heads = self._geometry, each.blocks, each.heads
        keys, values, sinks = layer
        launch(
            attend_pieces,
            (len(each.work.pieces) * heads.groups,),
            out,
            q,
            keys,
            values,
            sinks,
            room.sums,
            room.weights,
            each.work.pieces,
            self._plan.page_table,
            self._plan.page_table.stride(0),
            *(token_stride(q), q.stride(1)),
            *keys.stride()[:3],
            *values.stride()[:3],
            scale=geometry.head_dim**-0.5 if geometry.scale is None else geometry.scale,
            softcap=geometry.softcap,
            window=geometry.window,
            page_size=geometry.page_size,
            groups=heads.groups,
            group=heads.group,
            dim=heads.dim,
            columns=heads.columns,
            rows=blocks.rows,
            places=blocks.places,
            apart=blocks.apart and geometry.window is None,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )


def _heads(geometry: Geometry, blocks: Blocks) -> Heads:
    return Heads(
        heads=geometry.heads,
        groups=geometry.kv_heads,
        group=geometry.heads // geometry.kv_heads,
        dim=geometry.head_dim,
        rows=blocks.rows,
    )


@triton.jit(do_not_specialize=["tokens"])
def write_pages(
    k_at,
    v_at,
    keys_at,
    values_at,
    slots_at,
    tokens,
    k_token,
    k_head,
    v_token,
    v_head,
    key_page,
    key_head,
    key_place,
    value_page,
    value_head,
    value_place,
    page_size: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
    many: tl.constexpr,
):
    """The keys and values of `many` tokens each."""
    token = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)
    slot = tl.load(slots_at + token, mask=token < tokens, other=0)[:, None]
    page, place = slot // page_size, slot % page_size
    index = tl.arange(0, block)[None, :]
    head, column = index // dim, index % dim
    there = (token < tokens)[:, None] & (index < heads * dim)
    k = tl.load(k_at + token[:, None] * k_token + head * k_head + column, mask=there)
    v = tl.load(v_at + token[:, None] * v_token + head * v_head + column, mask=there)
    key_at = keys_at + page * key_page + place * key_place + head * key_head + column
    value_at = values_at + page * value_page + place * value_place + head * value_head + column
    tl.store(key_at, k.to(keys_at.dtype.element_ty), mask=there)
    tl.store(value_at, v.to(values_at.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["table_width"])
def attend_pieces(
    out_at,
    q_at,
    keys_at,
    values_at,
    sinks_at,
    sums_at,
    weights_at,
    pieces_at,
    table_at,
    table_width,
    q_token,
    q_head,
    key_page,
    key_head,
    key_place,
    value_page,
    value_head,
    value_place,
    scale: tl.constexpr,
    softcap: tl.constexpr,
    window: tl.constexpr,
    page_size: tl.constexpr,
    groups: tl.constexpr,
    group: tl.constexpr,
    dim: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    places: tl.constexpr,
    apart: tl.constexpr,
):
    """A piece and a head of keys each. exp(score) = 2 ** (factor · product), or of the capped one:
    so a multiplication is saved (FlashAttention-2)."""
    factor: tl.constexpr = _LOG2_E * scale if softcap is None else _LOG2_E
    kv_head = tl.program_id(0) % groups
    piece = pieces_at + tl.program_id(0) // groups * 8
    table = table_at + tl.load(piece).to(tl.int64) * table_width
    token, tokens, position = tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    begin, end, slot = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6)
    row, column, place = tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, places)
    asks, there = row < tokens * group, column < dim
    own, head = position + row // group, kv_head * group + row % group
    mine = (token + row // group).to(tl.int64)
    filled = asks[:, None] & there[None, :]
    q_row = q_at + mine * q_token + head * q_head
    q = tl.load(q_row[:, None] + column[None, :], mask=filled, other=0.0)
    top = tl.full((rows,), -float("inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    if sinks_at is not None:
        takes = asks & (tl.load(piece + 7) == 1)
        sink = tl.load(sinks_at + head, mask=takes, other=-float("inf")).to(tl.float32)
        top = sink * (_LOG2_E / factor)
        total = tl.where(takes, 1.0, 0.0)
    out = tl.zeros((rows, columns), tl.float32)
    whole = begin
    if apart:
        # places that all tokens of the tile see need no mask
        whole += tl.maximum(tl.minimum(position + 1, end) - begin, 0) // places * places
    for masked in tl.static_range(0 if apart else 1, 2):
        for first in range(whole if masked else begin, end if masked else whole, places):
            at = first + place
            known = at < end
            page = tl.load(table + at // page_size, mask=known, other=0).to(tl.int64)
            offset = page * key_page + kv_head * key_head + at % page_size * key_place
            reads = known[:, None] & there[None, :]
            k = tl.load(keys_at + offset[:, None] + column[None, :], mask=reads, other=0.0)
            scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
            if softcap is not None:
                scores = softcap * (2 * tl.sigmoid(scores * (2 * scale / softcap)) - 1)
            if masked:
                sees = known[None, :] & (at[None, :] <= own[:, None])
                if window is not None:
                    sees = sees & (at[None, :] > own[:, None] - window)
                scores = tl.where(sees, scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == -float("inf"), 0.0, higher * factor)
            shares, kept = tl.exp2(scores * factor - base[:, None]), tl.exp2(top * factor - base)
            offset = page * value_page + kv_head * value_head + at % page_size * value_place
            v = tl.load(values_at + offset[:, None] + column[None, :], mask=reads, other=0.0)
            total = total * kept + tl.sum(shares, 1)
            shares, v = shares.to(q.dtype), v.to(q.dtype)
            out = tl.dot(shares, v, out * kept[:, None], input_precision="ieee")
            top = higher
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    out = out / divisor[:, None]
    if slot < 0:
        out_row = out_at + (mine * groups * group + head) * dim
        tl.store(out_row[:, None] + column[None, :], out.to(q.dtype), mask=filled)
    else:
        index = (slot.to(tl.int64) * groups + kv_head) * rows + row
        tl.store(sums_at + index[:, None] * dim + column[None, :], out, mask=filled)
        weight = tl.where(seen, top * factor + tl.log2(divisor), -float("inf"))
        tl.store(weights_at + index, weight, mask=asks)
