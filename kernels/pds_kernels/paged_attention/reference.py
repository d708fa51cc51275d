"""Attention over paged keys and values, in plain torch: the definition.

Keys and values are gathered from their pages into dense tensors, once a layer.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.gathering import Decode, Extend, Gather, Reach, gather
from pds_kernels.paged_attention.plan import Attend, Geometry, Prepare, check
from pds_kernels.plan import AttentionPlan


def make(geometry: Geometry) -> Prepare:
    """Nothing is kept from step to step."""
    return partial(prepare, geometry)


def prepare(geometry: Geometry, plan: AttentionPlan) -> Attend:
    """Work out what to gather."""
    reach = Reach(geometry.page_size, geometry.window, always_masked=not _fused(geometry))
    return _Attention(geometry, gather(plan, reach))


class _Attention:
    """plan.Attend for one step. Rows of padding tokens are zero."""

    def __init__(self, geometry: Geometry, step: Gather) -> None:
        self._geometry = geometry
        self._step = step

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None = None,
    ) -> Tensor:
        geometry, step = self._geometry, self._step
        check(geometry, sinks)
        if k is not None and v is not None:
            keys[step.pages, :, step.offsets] = k.to(keys.dtype)
            values[step.pages, :, step.offsets] = v.to(values.dtype)
        if step.all_decode(len(q)):
            return paged_decode(q, keys, values, step.decodes[0], geometry, sinks).flatten(1)
        out = torch.zeros_like(q)
        for chunk in step.extends:
            out[chunk.tokens] = paged_extend(q[chunk.tokens], keys, values, chunk, geometry, sinks)
        for rows in step.decodes:
            out[rows.tokens] = paged_decode(q[rows.tokens], keys, values, rows, geometry, sinks)
        return out.flatten(1)


def paged_extend(
    q: Tensor, keys: Tensor, values: Tensor, chunk: Extend, geometry: Geometry, sinks: Tensor | None
) -> Tensor:
    """Causal attention of one chunk over all it sees. q: [T, heads, D]; returns the same."""
    length, _, dim = q.shape
    grouped = q.view(length, keys.shape[1], -1, dim).permute(1, 2, 0, 3)
    k, v = (
        _heads_first(pages.index_select(0, chunk.pages), 1, q.dtype)[:, 0, chunk.seen]
        for pages in (keys, values)
    )
    if _fused(geometry):
        out = F.scaled_dot_product_attention(
            grouped,
            k.unsqueeze(1).expand(-1, grouped.shape[1], -1, -1),
            v.unsqueeze(1).expand(-1, grouped.shape[1], -1, -1),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=geometry.scale,
        )
    else:
        out = _extend_by_hand(grouped, k, v, chunk, geometry, sinks)
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def _extend_by_hand(
    q: Tensor, k: Tensor, v: Tensor, chunk: Extend, geometry: Geometry, sinks: Tensor | None
) -> Tensor:
    """q: [kv_heads, G, T, D]; k, v: [kv_heads, C, D]; returns what q is. One KV head at a time,
    since the scores of a long context are large."""
    if chunk.mask is None:
        raise ValueError("a chunk without a mask needs no attention by hand")
    unseen, scaled = ~chunk.mask, q * _scale(geometry)
    out = torch.empty_like(q)
    for head in range(len(k)):
        scores = torch.matmul(scaled[head], k[head].t())
        sink = None if sinks is None else sinks.view(len(k), -1)[head].view(-1, 1, 1)
        weights = _weights(scores, unseen, geometry.softcap, sink)
        out[head] = torch.matmul(weights.to(q.dtype), v[head])
    return out


def paged_decode(
    q: Tensor, keys: Tensor, values: Tensor, rows: Decode, geometry: Geometry, sinks: Tensor | None
) -> Tensor:
    """Attention of one token per request. q: [B, heads, D]; returns the same."""
    batch, heads, dim = q.shape
    k = keys.index_select(0, rows.pages)
    v = rows.filled(values.index_select(0, rows.pages))
    k, v = _heads_first(k, batch, q.dtype), _heads_first(v, batch, q.dtype)
    grouped = (q * _scale(geometry)).view(batch, len(k), -1, dim).transpose(0, 1)
    scores = torch.matmul(grouped, k.transpose(2, 3))
    sink = None if sinks is None else sinks.view(len(k), 1, -1, 1)
    weights = _weights(scores, rows.unseen, geometry.softcap, sink)
    return torch.matmul(weights.to(q.dtype), v).transpose(0, 1).reshape(batch, heads, dim)


def _weights(scores: Tensor, unseen: Tensor, softcap: float | None, sink: Tensor | None) -> Tensor:
    """What each place counts, in float32, from scaled scores [..., C]. `sink`: [..., 1]."""
    scores = scores.float()
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    scores = scores.masked_fill_(unseen, float("-inf"))
    if sink is None:
        return scores.softmax(-1)
    beside = sink.float().expand(*scores.shape[:-1], 1)
    return torch.cat((scores, beside), -1).softmax(-1)[..., :-1]


def _fused(geometry: Geometry) -> bool:
    """Whether scaled_dot_product_attention can compute it: it takes no softcap and no sinks."""
    return geometry.softcap is None and not geometry.sinks


def _scale(geometry: Geometry) -> float:
    return geometry.head_dim**-0.5 if geometry.scale is None else geometry.scale


def _heads_first(pages: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """[B·P, kv_heads, page_size, D] → [kv_heads, B, P·page_size, D], contiguous."""
    each = pages.view(batch, -1, *pages.shape[1:]).permute(2, 0, 1, 3, 4)
    return each.to(dtype, memory_format=torch.contiguous_format).flatten(2, 3)
