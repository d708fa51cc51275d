"""What of the pages a step's tokens read, for kernels in torch that gather it into dense tensors.

The same for every layer of a geometry: it is worked out once a step. Nothing is read back from the
device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pds_kernels.plan import AttentionPlan


@dataclass(frozen=True, slots=True)
class Reach:
    """How a geometry's tokens see their context."""

    page_size: int
    window: int | None = None
    """How many tokens a token sees, itself included; None: all."""
    always_masked: bool = False
    """Whether a chunk needs a mask even where it is plainly causal from 0."""


@dataclass(frozen=True, slots=True)
class Extend:
    """One request of several tokens: `tokens` of the step, at the end of what they see."""

    tokens: slice
    pages: Tensor
    """[P] int32: the pages of all that the tokens see, in order."""
    seen: slice
    """Which places of these pages the tokens see, C in all."""
    mask: Tensor | None
    """[tokens, C] bool, True where a token sees another; None: plainly causal from 0."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Requests of one token each that see similar numbers of tokens: `tokens` of the step, B."""

    tokens: slice
    pages: Tensor
    """[B·P] int32; entries past a request's context name any page of finite content, or one of its
    own."""
    unseen: Tensor
    """[B, 1, P·page_size] bool: True past the request's context, and before its window."""
    partial: Tensor
    """[N] int64: which of all B·P pages may have places that the request has not filled."""
    unfilled: Tensor
    """[N, page_size] bool: True at those places."""

    def filled(self, pages: Tensor) -> Tensor:
        """Gathered `pages`, [B·P, …, page_size, D], with zeros in places that are not filled."""
        unfilled = self.unfilled.view(-1, *[1] * (pages.dim() - 3), pages.shape[-2], 1)
        blanked = pages.index_select(0, self.partial).masked_fill_(unfilled, 0)
        return pages.index_copy_(0, self.partial, blanked)


@dataclass(frozen=True, slots=True)
class Gather:
    """All that a step writes and reads."""

    pages: Tensor
    """[T] int64: the page that each token's cache is written to."""
    offsets: Tensor
    """[T] int64: where in that page."""
    extends: tuple[Extend, ...]
    decodes: tuple[Decode, ...]

    def all_decode(self, tokens: int) -> bool:
        """Whether one batch of requests of one token each is the whole step, without padding."""
        return not self.extends and [d.tokens for d in self.decodes] == [slice(0, tokens)]


def gather(plan: AttentionPlan, reach: Reach) -> Gather:
    """What the tokens of `plan` read."""
    page_size, window = reach.page_size, reach.window
    requests, longest = len(plan.seq_lens_host), max(plan.seq_lens_host, default=0)
    places = torch.arange(max(longest + page_size, requests), device=plan.seq_lens.device)
    newest = plan.seq_lens.long() - 1
    extends: list[Extend] = []
    decodes: list[Decode] = []
    for first, end in _batches(plan, page_size, window):
        if plan.tokens(first) > 1:
            extends.append(_extend(reach, plan, first, places))
        elif window is not None and max(plan.seq_lens_host[first:end]) > window:
            decodes.append(_decode_within(window, plan, first, end, newest[first:end], page_size))
        else:
            decodes.append(_decode(plan, first, end, newest[first:end], places, page_size))
    return Gather(
        pages=plan.write_slots // page_size,
        offsets=plan.write_slots % page_size,
        extends=tuple(extends),
        decodes=tuple(decodes),
    )


def _batches(plan: AttentionPlan, page_size: int, window: int | None) -> Iterator[tuple[int, int]]:
    """Requests first … end-1 that are computed at once: one of several tokens by itself, and those
    of one token that stand side by side and that see numbers of pages within a factor of two, since
    each is padded to the longest of its batch."""

    def kind(request: int) -> tuple[int, int]:
        if plan.tokens(request) > 1:
            return 0, request
        context = plan.seq_lens_host[request]
        pages = (min(context, window or context) - 1) // page_size
        return 1, max(8, pages).bit_length()

    for _, each in groupby(range(len(plan.seq_lens_host)), key=kind):
        requests = list(each)
        yield requests[0], requests[-1] + 1


def _extend(reach: Reach, plan: AttentionPlan, request: int, places: Tensor) -> Extend:
    page_size, window = reach.page_size, reach.window
    begin, end = plan.cu_seqlens_q_host[request : request + 2]
    context = plan.seq_lens_host[request]
    start = context - (end - begin)
    oldest = max(0, start + 1 - window) if window else 0
    mask = None
    if start or reach.always_masked or (window and context > window):
        seen, own = places[oldest:context], places[start:context].unsqueeze(1)
        mask = seen <= own
        if window:
            mask &= seen > own - window
    first = oldest // page_size
    return Extend(
        tokens=slice(begin, end),
        pages=plan.page_table[request, first : -(-context // page_size)],
        seen=slice(oldest - first * page_size, context - first * page_size),
        mask=mask,
    )


def _decode(
    plan: AttentionPlan, first: int, end: int, newest: Tensor, places: Tensor, page_size: int
) -> Decode:
    """`newest`: [B] int64, the last position of each of these requests. They see all before it."""
    tokens = slice(plan.cu_seqlens_q_host[first], plan.cu_seqlens_q_host[end])
    count = -(-max(plan.seq_lens_host[first:end]) // page_size)
    last = newest // page_size
    return Decode(
        tokens=tokens,
        pages=plan.page_table[first:end, :count].flatten(),
        unseen=(places[: count * page_size] > newest.unsqueeze(1)).unsqueeze(1),
        partial=last + places[: end - first] * count,
        unfilled=places[:page_size] > newest.remainder(page_size).unsqueeze(1),
    )


def _decode_within(
    window: int, plan: AttentionPlan, first: int, end: int, newest: Tensor, page_size: int
) -> Decode:
    """As _decode, but each request reads from the page on in which its window begins.

    A request that reads fewer pages than another of the batch reads its last one again instead, as
    if it were later ones: any of them may have unfilled places.
    """
    contexts = plan.seq_lens_host[first:end]
    count = max((n - 1) // page_size - max(0, n - window) // page_size + 1 for n in contexts)
    within, newest = torch.arange(count * page_size, device=newest.device), newest.unsqueeze(1)
    begin = (newest + 1 - window).clamp_(min=0) // page_size
    columns = torch.minimum(begin + within[:count], newest // page_size)
    positions = begin * page_size + within
    future = positions > newest
    return Decode(
        tokens=slice(plan.cu_seqlens_q_host[first], plan.cu_seqlens_q_host[end]),
        pages=plan.page_table[first:end].gather(1, columns).flatten(),
        unseen=(future | (positions <= newest - window)).unsqueeze(1),
        partial=torch.arange(len(contexts) * count, device=newest.device),
        unfilled=future.view(-1, page_size),
    )
