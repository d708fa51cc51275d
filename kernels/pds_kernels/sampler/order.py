"""Scores and ids in one number, and which of the likeliest tokens may be drawn.

An order of such numbers is an order of scores in which the lowest id wins ties, on every device and
layout alike.
"""

import torch
from torch import Tensor

from pds_kernels.sampler.plan import Bounds

_WORD = 0xFFFFFFFF
_SIGN = 0x7FFFFFFF


def pack(scores: Tensor, first: int) -> Tensor:
    """[R, V] float32, of ids first, first + 1 … → [R, V] int64 that rise with score, then fall
    with id. NaN of either sign is above all, as it is for max and sort."""
    sound = torch.where(scores.isnan(), torch.nan, scores + 0.0)  # -0.0 becomes 0.0: they are equal
    bits = sound.view(torch.int32)
    rising = bits ^ ((bits >> 31) & _SIGN)  # negative floats fall as their bits rise
    ids = torch.arange(first, first + scores.shape[1], device=scores.device)
    return (rising.long() << 32) | (_WORD - ids)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and ids (int64) of what `pack` made."""
    rising = (packed >> 32).int()
    bits = rising ^ ((rising >> 31) & _SIGN)
    return bits.view(torch.float32), _WORD - (packed & _WORD)


def nucleus(scores: Tensor, total: Tensor | None, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Which of the likeliest tokens may be drawn, and whether these are all that may.

    scores: [R, C], likeliest first. total: [R] float64, the mass of the whole vocabulary's scores
    that min_p leaves; None: `scores` hold it all, or every row's top_k of it. Returns [R, C] bool
    and [R] bool.
    """
    count = scores.shape[1]
    top_k, top_p = bounds.top_k.unsqueeze(1), bounds.top_p.unsqueeze(1)
    places = torch.arange(count, device=scores.device)
    kept = scores >= scores[:, :1] + bounds.log_min_p.unsqueeze(1)
    within = kept & ((places < top_k) | (top_k == 0))
    weights = (scores - scores[:, :1]).double().exp().masked_fill_(~within, 0)
    sums = weights.sum(-1, keepdim=True)
    if total is None:
        inside = torch.ones_like(top_k, dtype=torch.bool)
    else:
        inside = ((top_k > 0) & (top_k <= count)) | ~kept[:, -1:]
        sums = sums.where(inside, total.unsqueeze(1))
    # Sums are compared in float32: layouts sum in another order, and differ in float64's last bits.
    reached = weights.cumsum(-1) / sums
    before = (reached - weights / sums).float()
    allowed = within & ((before < top_p) | (places == 0))
    covered = inside | ((top_k == 0) & (top_p < 1) & (reached[:, -1:].float() >= top_p))
    return allowed, covered.squeeze(1)
