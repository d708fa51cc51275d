"""What a kernel is given: what stays the same as long as a process runs, and a layer's tensors.

What changes with each step is `pds_kernels.plan.AttentionPlan`. The names are those of DeepSeek-AI,
"DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", 2024: a
token's cache is the normalised latent of its keys and values, and one rotated key for all heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pds_kernels.plan import AttentionPlan


@dataclass(frozen=True, slots=True)
class Heads:
    """What the weights of heads are multiplied in."""

    dtype: torch.dtype
    """Of queries and of the result."""
    stored: torch.dtype
    """Of the weights, once they are packed: `dtype`, or what the checkpoint has."""
    device: torch.device


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Heads are this rank's; latents are whole on
    every rank."""

    heads: int
    nope_dim: int
    """Of a head's query and key, the part without a position."""
    rope_dim: int
    """The rotated part."""
    value_dim: int
    kv_rank: int
    """Of the latent, without the rotated part."""
    page_size: int
    scale: float
    """What scores are multiplied by."""
    dtype: torch.dtype
    """Of queries and of the result."""
    kv_dtype: torch.dtype
    """Of the pages."""
    device: torch.device


Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q, latent, pages, w_uk, w_uv) → out, for one layer: write the latents into their pages, then
attend.

q: [T, heads, nope_dim + rope_dim], rotated already; latent: [T, kv_rank + rope_dim], the normalised
latent and then the rotated key; pages: the layer's, [pages, page_size, kv_rank + rope_dim], strided
as kv.pool in the engine says; w_uk: [heads, nope_dim, kv_rank] and w_uv: [heads, value_dim,
kv_rank], which make a head's key and value of a latent, or both as `packed` gives them. out:
[T, heads·value_dim] in q's dtype; finite where the token is padding. Places in a page that no token
of a request has filled may hold anything, NaN too: they must be kept out of the result, not
multiplied by zero.
"""
Prepare = Callable[[AttentionPlan], Attend]
"""Whatever a kernel derives from a plan is derived here, once a step."""
