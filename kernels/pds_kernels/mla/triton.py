"""Multi-head latent attention on GPUs: single tokens by a kernel, chunks by the definition.

Queries are taken into the latents' space first (`absorb` in `reference`): then all heads attend to
the same latents, whose first columns are the values too. A program has up to 64 heads and reads
each latent once for all of them, as key and as value (DeepSeek-AI, "FlashMLA", 2025). A latent of
DeepSeek-V3 is 1,152 bytes and takes part in 64 · 2 · (576 + 512) operations: 121 a byte. So with
two programs for 128 heads, of which one finds the latents in the L2 cache, memory and tensor cores
of an H100 are busy about equally long.

Contexts are cut into pieces until they fill the GPU (`pds_kernels.tiles`). The two products with
w_uk and w_uv are torch's.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.gathering import Gather, Reach, gather
from pds_kernels.launching import launch
from pds_kernels.mla.plan import Attend, Geometry, Prepare
from pds_kernels.mla.reference import expand
from pds_kernels.mla.tuning import Blocks, tuning
from pds_kernels.plan import AttentionPlan
from pds_kernels.split_kv import (
    Heads,
    Listed,
    Listing,
    Partial,
    listed,
    padded,
    sms,
    token_stride,
)
from pds_kernels.tiles import Cutting, cut, room, tiles

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 512
"""Columns of a latent whose sums the registers hold."""
_LOG2_E = tl.constexpr(1.4426950408889634)


def serves(geometry: Geometry) -> bool:
    fits = geometry.kv_rank <= _WIDEST and geometry.rope_dim <= 128 and geometry.scale > 0
    return fits and geometry.dtype in _DTYPES and geometry.kv_dtype in _DTYPES


def make(geometry: Geometry) -> Prepare:
    """Nothing is kept from step to step, but for those that are repeated."""
    return Preparing(geometry, tuning(geometry), sms(geometry.device))


@dataclass(frozen=True, slots=True)
class Preparing:
    """plan.Prepare, and pds_kernels.plan.Repeats."""

    geometry: Geometry
    how: Blocks
    multiprocessors: int

    def __call__(self, plan: AttentionPlan) -> Attend:
        return prepare(self.geometry, self.how, self.multiprocessors, plan)

    def repeated(self, plan: AttentionPlan) -> "_Repeated":
        return _Repeated(self, plan)


def prepare(geometry: Geometry, how: Blocks, multiprocessors: int, plan: AttentionPlan) -> Attend:
    """Cut the single tokens' contexts into pieces that fill a GPU of so many `multiprocessors`, and
    work out what the chunks gather."""
    requests = range(len(plan.seq_lens_host))
    alone = [each for each in requests if plan.tokens(each) == 1]
    several = [each for each in requests if plan.tokens(each) > 1]
    single = _single(geometry, how, multiprocessors, plan, alone) if alone else None
    chunks = gather(_first(plan, several[-1] + 1), Reach(geometry.page_size)) if several else None
    return _Attention(geometry, plan, single, chunks)


@dataclass(frozen=True, slots=True)
class _Single:
    """All requests of one token."""

    tokens: slice
    """Of the step, from the first of them to the last. Where chunks are among them, these are
    computed in vain."""
    blocks: Blocks
    heads: Heads
    work: Listed
    padded: bool = False
    """Some of the tokens may be of no request."""


def _single(
    geometry: Geometry, how: Blocks, multiprocessors: int, plan: AttentionPlan, alone: list[int]
) -> _Single:
    heads = _heads(geometry, how)
    first, last = plan.cu_seqlens_q_host[alone[0]], plan.cu_seqlens_q_host[alone[-1]]
    found = [replace(tile, token=tile.token - first) for tile in tiles(plan, alone, 1)]
    work = listed(cut(found, _cutting(how, multiprocessors, heads)), geometry.device)
    return _Single(slice(first, last + 1), how, heads, work)


def _heads(geometry: Geometry, how: Blocks) -> Heads:
    group = min(geometry.heads, how.rows)
    return Heads(geometry.heads, -(-geometry.heads // group), group, geometry.kv_rank, how.rows)


def _cutting(how: Blocks, multiprocessors: int, heads: Heads) -> Cutting:
    return Cutting(multiprocessors * how.resident, heads.groups, how.least, how.places)


class _Repeated:
    """pds_kernels.plan.Repeated."""

    def __init__(self, how: Preparing, plan: AttentionPlan) -> None:
        geometry, heads, tokens = how.geometry, _heads(how.geometry, how.how), len(plan.write_slots)
        self._cutting = _cutting(how.how, how.multiprocessors, heads)
        self._listing = Listing(room(tokens, self._cutting), geometry.device)
        single = _Single(slice(0, tokens), how.how, heads, self._listing.work, padded=True)
        self.attend = _Attention(geometry, plan, single, None)

    def fill(self, plan: AttentionPlan) -> None:
        found = tiles(plan, range(len(plan.seq_lens_host)), 1)
        self._listing.fill(cut(found, self._cutting))


def _first(plan: AttentionPlan, requests: int) -> AttentionPlan:
    """The plan of the first `requests` alone: in the usual order, of the chunks."""
    return replace(
        plan,
        page_table=plan.page_table[:requests],
        seq_lens=plan.seq_lens[:requests],
        cu_seqlens_q=plan.cu_seqlens_q[: requests + 1],
        seq_lens_host=plan.seq_lens_host[:requests],
        cu_seqlens_q_host=plan.cu_seqlens_q_host[: requests + 1],
    )


class _Attention:
    """plan.Attend for one step. Rows of padding tokens are zero."""

    def __init__(
        self, geometry: Geometry, plan: AttentionPlan, single: _Single | None, chunks: Gather | None
    ) -> None:
        self._geometry, self._plan = geometry, plan
        self._single, self._chunks = single, chunks
        self._room = Partial(single.work, single.heads, geometry.device) if single else None

    def __call__(
        self, q: Tensor, latent: Tensor, pages: Tensor, w_uk: Tensor, w_uv: Tensor
    ) -> Tensor:
        self._write(latent, pages)
        out = q.new_zeros(len(q), len(w_uv), w_uv.shape[1])
        if self._single and self._room:
            tokens = self._single.tokens
            summed = self._sum(self._single, self._room, q[tokens], pages, w_uk)
            torch.matmul(summed.transpose(0, 1), w_uv.mT, out=out[tokens].transpose(0, 1))
        for chunk in self._chunks.extends if self._chunks else ():
            scale = self._geometry.scale
            out[chunk.tokens] = expand(q[chunk.tokens], chunk, pages, w_uk, w_uv, scale)
        return out.flatten(1)

    def _write(self, latent: Tensor, pages: Tensor) -> None:
        tokens, dim = latent.shape
        launch(
            write_latents,
            (tokens,),
            latent,
            pages,
            self._plan.write_slots,
            max(int(latent.stride(0)), dim),
            *pages.stride()[:2],
            page_size=self._geometry.page_size,
            dim=dim,
            block=padded(dim),
            num_warps=4,
        )

    def _sum(
        self, single: _Single, room: Partial, q: Tensor, pages: Tensor, w_uk: Tensor
    ) -> Tensor:
        """What each head takes of the latents. q: [B, heads, nope + rope]; returns [B, heads,
        rank]."""
        geometry, blocks, heads = self._geometry, single.blocks, single.heads
        absorbed = torch.matmul(q[:, :, : geometry.nope_dim].transpose(0, 1), w_uk)
        shape = len(q), geometry.heads, geometry.kv_rank
        summed = q.new_zeros(shape) if single.padded else q.new_empty(shape)
        launch(
            attend_latents,
            (len(single.work.pieces) * heads.groups,),
            summed,
            absorbed,
            q,
            pages,
            room.sums,
            room.weights,
            single.work.pieces,
            self._plan.page_table,
            self._plan.page_table.stride(0),
            len(q),
            *(token_stride(q), q.stride(1)),
            *pages.stride()[:2],
            scale=geometry.scale,
            page_size=geometry.page_size,
            heads=geometry.heads,
            groups=heads.groups,
            group=heads.group,
            nope=geometry.nope_dim,
            rank=geometry.kv_rank,
            rope=geometry.rope_dim,
            rank_columns=padded(geometry.kv_rank),
            rope_columns=padded(geometry.rope_dim),
            rows=blocks.rows,
            places=blocks.places,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        room.join(summed)
        return summed


@triton.jit
def write_latents(
    latent_at,
    pages_at,
    slots_at,
    stride,
    page_stride,
    place_stride,
    page_size: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
):
    """A token's latent each."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_at + token)
    column = tl.arange(0, block)
    latent = tl.load(latent_at + token * stride + column, mask=column < dim)
    page_at = pages_at + slot // page_size * page_stride + slot % page_size * place_stride
    tl.store(page_at + column, latent.to(pages_at.dtype.element_ty), mask=column < dim)


@triton.jit(do_not_specialize=["table_width", "tokens"])
def attend_latents(
    out_at,
    absorbed_at,
    q_at,
    pages_at,
    sums_at,
    weights_at,
    pieces_at,
    table_at,
    table_width,
    tokens,
    q_token,
    q_head,
    page_stride,
    place_stride,
    scale: tl.constexpr,
    page_size: tl.constexpr,
    heads: tl.constexpr,
    groups: tl.constexpr,
    group: tl.constexpr,
    nope: tl.constexpr,
    rank: tl.constexpr,
    rope: tl.constexpr,
    rank_columns: tl.constexpr,
    rope_columns: tl.constexpr,
    rows: tl.constexpr,
    places: tl.constexpr,
):
    """A piece and some heads each. absorbed: [heads, tokens, rank]. exp(score) is 2 ** (factor ·
    product): so a multiplication is saved (FlashAttention-2)."""
    factor: tl.constexpr = _LOG2_E * scale
    of_group = tl.program_id(0) % groups
    piece = pieces_at + tl.program_id(0) // groups * 8
    table = table_at + tl.load(piece).to(tl.int64) * table_width
    token = tl.load(piece + 1).to(tl.int64)
    begin, end, slot = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6)
    row, place = tl.arange(0, rows), tl.arange(0, places)
    column, turned = tl.arange(0, rank_columns), tl.arange(0, rope_columns)
    head = of_group * group + row
    asks = (row < group) & (head < heads) & (begin < end)  # a piece may be empty
    filled = asks[:, None] & (column < rank)[None, :]
    absorbed = tl.load(
        absorbed_at + (head.to(tl.int64) * tokens + token)[:, None] * rank + column[None, :],
        mask=filled,
        other=0.0,
    )
    rotated = tl.load(
        q_at + nope + token * q_token + head[:, None] * q_head + turned[None, :],
        mask=asks[:, None] & (turned < rope)[None, :],
        other=0.0,
    )
    top = tl.full((rows,), -float("inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    out = tl.zeros((rows, rank_columns), tl.float32)
    for first in range(begin, end, places):
        at = first + place
        known = at < end
        page = tl.load(table + at // page_size, mask=known, other=0).to(tl.int64)
        latent_at = pages_at + page * page_stride + at % page_size * place_stride
        reads = known[:, None] & (column < rank)[None, :]
        latent = tl.load(latent_at[:, None] + column[None, :], mask=reads, other=0.0)
        reads = known[:, None] & (turned < rope)[None, :]
        key = tl.load(latent_at[:, None] + rank + turned[None, :], mask=reads, other=0.0)
        latent, key = latent.to(absorbed.dtype), key.to(absorbed.dtype)
        scores = tl.dot(rotated, tl.trans(key), input_precision="ieee")
        scores = tl.dot(absorbed, tl.trans(latent), scores, input_precision="ieee")
        scores = tl.where(known[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores * factor - (higher * factor)[:, None])
        kept = tl.exp2((top - higher) * factor)
        out = tl.dot(shares.to(latent.dtype), latent, out * kept[:, None], input_precision="ieee")
        total = total * kept + tl.sum(shares, 1)
        top = higher
    total = tl.where(begin < end, total, 1.0)
    out = out / total[:, None]
    if slot < 0:
        out_row = out_at + (token * heads + head) * rank
        tl.store(out_row[:, None] + column[None, :], out.to(absorbed.dtype), mask=filled)
    else:
        index = (slot.to(tl.int64) * groups + of_group) * rows + row
        tl.store(sums_at + index[:, None] * rank + column[None, :], out, mask=filled)
        tl.store(weights_at + index, top * factor + tl.log2(total), mask=asks)
