"""All attention of one step, as every kind of attention is given it.

Paging as in Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All attention of one step: B requests, T tokens of theirs and of padding, at its end.

    The same for every layer. A request's tokens are the last of its context, and each of them
    attends to itself and to all before it, or to those within the layer's window. Requests of
    several tokens come first, then those of one token, in order of their contexts. A kernel must be
    right for any order; it may be faster in this one.

    Other names for the same: seq_lens is cache_seqlens in FlashAttention and FlashMLA; cu_seqlens_q
    is qo_indptr in FlashInfer, which takes it from the host; page_table is block_table in FlashMLA,
    and write_slots is vLLM's slot_mapping.
    """

    page_table: Tensor
    """[B, P] int32: the pages of each request's context, in order. Entries past them name a page of
    finite content that no request holds. A layer with a window must not read entries of pages that
    lie wholly before what the request's tokens see: somebody else may hold those pages by now."""
    seq_lens: Tensor
    """[B] int32: how many tokens each request's context has, this step's included."""
    cu_seqlens_q: Tensor
    """[B + 1] int32: where each request's tokens begin among T, and where those of the last end."""
    write_slots: Tensor
    """[T] int64: where the cache of each token is written: page · page_size + place in the page.
    Those of padding are written to the page that no request holds."""
    seq_lens_host: tuple[int, ...]
    """`seq_lens` on the host: nothing needs to be read back from the device."""
    cu_seqlens_q_host: tuple[int, ...]
    """`cu_seqlens_q` on the host."""

    def tokens(self, request: int) -> int:
        """How many tokens of the step the request has."""
        return self.cu_seqlens_q_host[request + 1] - self.cu_seqlens_q_host[request]


class Repeated(Protocol):
    """Attention of decode steps that are replayed: each launches the same, and what a step has of
    its own lies in tensors."""

    @property
    def attend(self) -> Callable[..., Tensor]:
        """As a kernel's Prepare returns it. It may be captured in a CUDA graph."""

    def fill(self, plan: AttentionPlan) -> None:
        """The next call, or replay, of `attend` is for the step of `plan`: requests of one token
        each, no more than there is room for. Its tensors lie in those that `repeated` was given."""


@runtime_checkable
class Repeats(Protocol):
    """A kernel's Prepare that gets ready for such steps too."""

    def repeated(self, plan: AttentionPlan) -> Repeated:
        """`plan` has the tensors that every step is written to, with room for as many requests of
        one token as it has tokens; the host's part of it is empty."""
