"""Attention over paged keys and values, in plain torch: the definition, and what runs so far.

Keys and values are gathered from their pages into dense tensors, once a layer. Which pages, and
what of them counts, is the same for every layer: `prepare` works it out once a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.paged_attention.plan import Attend, AttentionPlan, Geometry, Prepare


@dataclass(frozen=True, slots=True)
class Extend:
    """One request of several tokens: `tokens` of the step, at the end of `context` tokens."""

    tokens: slice
    context: int
    pages: Tensor
    """[P] int32: the pages of the context, in order."""
    mask: Tensor | None
    """[tokens, context] bool, True where a token sees another; None: plain causal from 0."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Requests of one token each, of similar context: `tokens` of the step, B of them."""

    tokens: slice
    pages: Tensor
    """[B·P] int32; entries past a request's context name any page of finite content."""
    unseen: Tensor
    """[B, 1, P·page_size] bool: True past the request's context."""
    last: Tensor
    """[B] int64: which of all B·P pages is the request's last one."""
    tail: Tensor
    """[B, 1, page_size, 1] bool: True past the context within that last page."""


@dataclass(frozen=True, slots=True)
class Gather:
    """All attention of one step, as `attend` computes it."""

    pages: Tensor
    """[T] int64: the page that each token's K and V are written to."""
    offsets: Tensor
    """[T] int64: where in that page."""
    extends: tuple[Extend, ...]
    decodes: tuple[Decode, ...]


def make(geometry: Geometry) -> Prepare:
    """Nothing is kept from step to step."""
    return partial(prepare, page_size=geometry.page_size)


def prepare(plan: AttentionPlan, *, page_size: int) -> Attend:
    """Work out what to gather. Nothing is read back from the device."""
    requests, longest = len(plan.seq_lens_host), max(plan.seq_lens_host, default=0)
    places = torch.arange(max(longest + page_size, requests), device=plan.seq_lens.device)
    newest = plan.seq_lens.long() - 1
    extends: list[Extend] = []
    decodes: list[Decode] = []
    for first, end in _groups(plan, page_size):
        if _tokens(plan, first) > 1:
            extends.append(_extend(plan, first, places, page_size))
        else:
            decodes.append(_decode(plan, first, end, newest[first:end], places, page_size))
    gather = Gather(
        pages=plan.write_slots // page_size,
        offsets=plan.write_slots % page_size,
        extends=tuple(extends),
        decodes=tuple(decodes),
    )
    return partial(attend, gather)


def attend(gather: Gather, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """plan.Attend, once `gather` is given. Rows of padding tokens are zero."""
    keys[gather.pages, :, gather.offsets] = k.to(keys.dtype)
    values[gather.pages, :, gather.offsets] = v.to(values.dtype)
    if len(gather.decodes) == 1 and not gather.extends and len(gather.decodes[0].last) == len(q):
        return paged_decode(q, keys, values, gather.decodes[0]).flatten(1)
    out = torch.zeros_like(q)
    for chunk in gather.extends:
        out[chunk.tokens] = paged_extend(q[chunk.tokens], keys, values, chunk)
    for rows in gather.decodes:
        out[rows.tokens] = paged_decode(q[rows.tokens], keys, values, rows)
    return out.flatten(1)


def paged_extend(q: Tensor, keys: Tensor, values: Tensor, chunk: Extend) -> Tensor:
    """Causal attention of one chunk over its whole context. q: [T, heads, D]; returns the same."""
    length, _, dim = q.shape
    grouped = q.view(length, keys.shape[1], -1, dim).permute(1, 2, 0, 3)
    k, v = (
        _heads_first(pages.index_select(0, chunk.pages), 1, q.dtype)[:, 0, : chunk.context]
        for pages in (keys, values)
    )
    out = F.scaled_dot_product_attention(
        grouped,
        k.unsqueeze(1).expand(-1, grouped.shape[1], -1, -1),
        v.unsqueeze(1).expand(-1, grouped.shape[1], -1, -1),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
    )
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def paged_decode(q: Tensor, keys: Tensor, values: Tensor, rows: Decode) -> Tensor:
    """Attention of one token per request. q: [B, heads, D]; returns the same."""
    batch, heads, dim = q.shape
    k = keys.index_select(0, rows.pages)
    v = values.index_select(0, rows.pages)
    v.index_copy_(0, rows.last, v.index_select(0, rows.last).masked_fill_(rows.tail, 0))
    k, v = _heads_first(k, batch, q.dtype), _heads_first(v, batch, q.dtype)
    grouped = (q * dim**-0.5).view(batch, len(k), -1, dim).transpose(0, 1)
    scores = torch.matmul(grouped, k.transpose(2, 3)).float()
    weights = scores.masked_fill_(rows.unseen, float("-inf")).softmax(-1)
    return torch.matmul(weights.to(q.dtype), v).transpose(0, 1).reshape(batch, heads, dim)


def _heads_first(pages: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """[B·P, kv_heads, page_size, D] → [kv_heads, B, P·page_size, D], contiguous."""
    each = pages.view(batch, -1, *pages.shape[1:]).permute(2, 0, 1, 3, 4)
    return each.to(dtype, memory_format=torch.contiguous_format).flatten(2, 3)


def _groups(plan: AttentionPlan, page_size: int) -> Iterator[tuple[int, int]]:
    """Requests first … end-1 that are computed at once: one of several tokens by itself, and those
    of one token that stand side by side and whose contexts are within a factor of two, since each
    is padded to the longest of its group."""

    def kind(request: int) -> tuple[int, int]:
        if _tokens(plan, request) > 1:
            return 0, request
        pages = (plan.seq_lens_host[request] - 1) // page_size
        return 1, max(8, pages).bit_length()

    for _, each in groupby(range(len(plan.seq_lens_host)), key=kind):
        requests = list(each)
        yield requests[0], requests[-1] + 1


def _tokens(plan: AttentionPlan, request: int) -> int:
    return plan.cu_seqlens_q_host[request + 1] - plan.cu_seqlens_q_host[request]


def _extend(plan: AttentionPlan, request: int, places: Tensor, page_size: int) -> Extend:
    begin, end = plan.cu_seqlens_q_host[request : request + 2]
    context = plan.seq_lens_host[request]
    start = context - (end - begin)
    mask = None
    if start:
        seen = places[:context]
        mask = seen <= seen[start:].unsqueeze(1)
    pages = plan.page_table[request, : -(-context // page_size)]
    return Extend(slice(begin, end), context, pages, mask)


def _decode(
    plan: AttentionPlan, first: int, end: int, newest: Tensor, places: Tensor, page_size: int
) -> Decode:
    """`newest`: [B] int64, the last position of each of these requests."""
    tokens = slice(plan.cu_seqlens_q_host[first], plan.cu_seqlens_q_host[end])
    count = -(-max(plan.seq_lens_host[first:end]) // page_size)
    last = newest // page_size
    return Decode(
        tokens=tokens,
        pages=plan.page_table[first:end, :count].flatten(),
        unseen=(places[: count * page_size] > newest.unsqueeze(1)).unsqueeze(1),
        last=last + places[: end - first] * count,
        tail=places[:page_size, None] > newest.remainder(page_size).view(-1, 1, 1, 1),
    )
