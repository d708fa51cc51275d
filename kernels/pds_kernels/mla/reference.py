"""Multi-head latent attention in plain torch: the definition, and what runs so far.

A head's key is w_uk · latent beside the rotated key that all heads share, its value is
w_uv · latent. There are two ways to compute with that, which give the same:

- expand: make keys and values of every latent that is seen. Cheap where many tokens share them.
- absorb: q · (w_uk · latent) = (w_ukᵀ · q) · latent, and the sum of values is w_uv · the sum of
  latents. Each latent is read once for all heads and nothing is made of it: for single tokens.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.gathering import Decode, Extend, Gather, Reach, gather
from pds_kernels.mla.plan import Attend, Geometry, Prepare
from pds_kernels.plan import AttentionPlan


def make(geometry: Geometry) -> Prepare:
    """Nothing is kept from step to step."""
    return partial(prepare, geometry)


def prepare(geometry: Geometry, plan: AttentionPlan) -> Attend:
    """Work out what to gather."""
    return _Attention(geometry, gather(plan, Reach(geometry.page_size)))


class _Attention:
    """plan.Attend for one step. Rows of padding tokens are zero."""

    def __init__(self, geometry: Geometry, step: Gather) -> None:
        self._geometry = geometry
        self._step = step

    def __call__(
        self, q: Tensor, latent: Tensor, pages: Tensor, w_uk: Tensor, w_uv: Tensor
    ) -> Tensor:
        step, scale = self._step, self._geometry.scale
        pages[step.pages, step.offsets] = latent.to(pages.dtype)
        if step.all_decode(len(q)):
            return absorb(q * scale, step.decodes[0], pages, w_uk, w_uv).flatten(1)
        out = q.new_zeros(len(q), len(w_uv), w_uv.shape[1])
        for chunk in step.extends:
            out[chunk.tokens] = expand(q[chunk.tokens], chunk, pages, w_uk, w_uv, scale)
        for rows in step.decodes:
            out[rows.tokens] = absorb(q[rows.tokens] * scale, rows, pages, w_uk, w_uv)
        return out.flatten(1)


def expand(
    q: Tensor, chunk: Extend, pages: Tensor, w_uk: Tensor, w_uv: Tensor, scale: float
) -> Tensor:
    """One chunk over its whole context. q: [T, heads, nope + rope]; returns [T, heads, value]."""
    context = pages.index_select(0, chunk.pages).flatten(0, 1)[chunk.seen].to(q.dtype)
    latent, rotated = context.split_with_sizes([w_uk.shape[2], q.shape[2] - w_uk.shape[1]], 1)
    keys = torch.matmul(latent, w_uk.transpose(1, 2))
    values = torch.matmul(latent, w_uv.transpose(1, 2))
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1),
        torch.cat((keys, rotated.expand(len(keys), -1, -1)), -1),
        values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
    )
    return out.transpose(0, 1)


def absorb(q: Tensor, rows: Decode, pages: Tensor, w_uk: Tensor, w_uv: Tensor) -> Tensor:
    """One token per request. q: [B, heads, nope + rope], scaled; returns [B, heads, value]."""
    nope, rank = w_uk.shape[1:]
    found = rows.filled(pages.index_select(0, rows.pages))
    context = found.view(len(q), -1, found.shape[-1]).to(q.dtype)
    absorbed = torch.matmul(q[:, :, :nope].transpose(0, 1), w_uk).transpose(0, 1)
    queries = torch.cat((absorbed, q[:, :, nope:]), -1)
    scores = torch.matmul(queries, context.transpose(1, 2)).float()
    weights = scores.masked_fill_(rows.unseen, float("-inf")).softmax(-1)
    summed = torch.matmul(weights.to(q.dtype), context[:, :, :rank])
    return torch.matmul(summed.transpose(0, 1), w_uv.transpose(1, 2)).transpose(0, 1)
