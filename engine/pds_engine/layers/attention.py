"""Attention over paged keys and values, in plain torch.

A page holds `page_size` tokens of all KV heads: [pages, kv_heads, page_size, head_dim], strided as
kv.pool says. Places in a page that no token of this request has filled may hold anything, NaN too:
every function here keeps them out of the result rather than multiplying them by zero.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Extend:
    """A chunk of one request's prompt: `tokens` of the step, at the end of `context` tokens."""

    tokens: slice
    context: int
    pages: Tensor
    """[P] int64: the pages of the context, in order."""
    mask: Tensor | None
    """[tokens, context] bool, True where a token sees another; None: plain causal from 0."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Requests of one new token each, of similar context: `tokens` of the step, B of them."""

    tokens: slice
    pages: Tensor
    """[B, P] int64; entries past a request's context name any page of finite content."""
    unseen: Tensor
    """[B, 1, P·page_size] bool: True past the request's context."""
    last: Tensor
    """[B] int64: which of all B·P pages is the request's last one."""
    tail: Tensor
    """[B, 1, page_size, 1] bool: True past the context within that last page."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All attention of one step; the same for every layer."""

    pages: Tensor
    """[T] int64: the page that each token's K and V are written to."""
    offsets: Tensor
    """[T] int64: where in that page."""
    extends: tuple[Extend, ...]
    decodes: tuple[Decode, ...]


def attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan
) -> Tensor:
    """Write the step's keys and values into their pages, then attend.

    q: [T, heads, D]; k, v: [T, kv_heads, D]; keys, values: one layer's pages. Returns [T, heads·D]
    in q's dtype; rows of padding tokens are zero.
    """
    keys[plan.pages, :, plan.offsets] = k.to(keys.dtype)
    values[plan.pages, :, plan.offsets] = v.to(values.dtype)
    if len(plan.decodes) == 1 and not plan.extends and len(plan.decodes[0].pages) == len(q):
        return paged_decode(q, keys, values, plan.decodes[0]).flatten(1)
    out = torch.zeros_like(q)
    for chunk in plan.extends:
        out[chunk.tokens] = paged_extend(q[chunk.tokens], keys, values, chunk)
    for rows in plan.decodes:
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
    k = keys.index_select(0, rows.pages.flatten())
    v = values.index_select(0, rows.pages.flatten())
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
