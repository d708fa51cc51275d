"""What a kernel is given: what stays the same, what changes with each step, and a layer's tensors.

Paging as in Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Heads are this rank's."""

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    """Of queries and of the result."""
    kv_dtype: torch.dtype
    """Of the pages."""
    device: torch.device


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All attention of one step: B requests, T tokens of theirs and of padding, at its end.

    The same for every layer. A request's tokens are the last of its context, and each of them
    attends to itself and to all before it. Requests of several tokens come first, then those of one
    token, in order of their contexts. A kernel must be right for any order; it may be faster in
    this one.

    Other names for the same: seq_lens is cache_seqlens in FlashAttention and FlashMLA; cu_seqlens_q
    is qo_indptr in FlashInfer, which takes it from the host; page_table is block_table in FlashMLA,
    and write_slots is vLLM's slot_mapping.
    """

    page_table: Tensor
    """[B, P] int32: the pages of each request's context, in order. Entries past them name a page of
    finite content that no request holds."""
    seq_lens: Tensor
    """[B] int32: how many tokens each request's context has, this step's included."""
    cu_seqlens_q: Tensor
    """[B + 1] int32: where each request's tokens begin among T, and where those of the last end."""
    write_slots: Tensor
    """[T] int64: where the keys and values of each token are written: page · page_size + place in
    the page. Those of padding are written to the page that no request holds."""
    seq_lens_host: tuple[int, ...]
    """`seq_lens` on the host: nothing needs to be read back from the device."""
    cu_seqlens_q_host: tuple[int, ...]
    """`cu_seqlens_q` on the host."""


Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q, k, v, keys, values) → out, for one layer: write k and v into their pages, then attend.

q: [T, heads, D]; k, v: [T, kv_heads, D]; keys, values: the layer's pages, [pages, kv_heads,
page_size, D], strided as kv.pool in the engine says. out: [T, heads·D] in q's dtype; finite where
the token is padding. Places in a page that no token of a request has filled may hold anything, NaN
too: they must be kept out of the result, not multiplied by zero.
"""
Prepare = Callable[[AttentionPlan], Attend]
"""Whatever a kernel derives from a plan is derived here, once a step."""
