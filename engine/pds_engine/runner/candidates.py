"""The likeliest tokens of a vocabulary that may be split over ranks, and which of them top_k, top_p
and min_p leave.

A score and its token id are one whole number, so that an order of numbers is an order of scores in
which the lowest id wins ties, on every device and layout alike.
"""

from collections.abc import Sequence

import torch
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.messages import Sampling
from pds_engine.parallel.collectives import VocabShard

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


def likeliest(scores: Tensor, most: int, vocab: VocabShard) -> tuple[Tensor, Tensor]:
    """The `most` likeliest tokens of all ranks, likeliest first: scores and ids, [R, C] each.

    Each rank gives its own `most`: whatever is among the likeliest of all is among those of its
    shard. C is below `most` where the vocabulary is.
    """
    if vocab.ranks.size == 1 and most >= scores.shape[1]:
        ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
        return ordered, ids + vocab.ids.start
    own = pack(scores, vocab.ids.start)
    own = own.topk(min(most, own.shape[1])).values
    return unpack(merged(vocab.ranks.gather(own), most))


def merged(gathered: Tensor, most: int) -> Tensor:
    """The `most` greatest of all ranks' [size, R, c], greatest first: [R, C]."""
    everyone = gathered.movedim(0, 1).flatten(1)
    return everyone.topk(min(most, everyone.shape[1])).values


def floor(best: Tensor, options: Sequence[Sampling]) -> Tensor:
    """The least score that min_p leaves: at least that part of the likeliest's chance. [R, 1]."""
    return best + column([option.min_p for option in options], best).log()


def mass(scores: Tensor, best: Tensor, least: Tensor, vocab: VocabShard) -> Tensor:
    """The sum of exp(score - best) over all ranks' scores that are at least `least`: [R] float64.

    scores: [R, V]; best, least: [R, 1].
    """
    weights = (scores - best).double().exp().masked_fill_(scores < least, 0)
    return vocab.ranks.gather(weights.sum(-1)).sum(0)


def nucleus(
    scores: Tensor, total: Tensor | None, options: Sequence[Sampling]
) -> tuple[Tensor, Tensor]:
    """Which of the likeliest tokens may be drawn, and whether these are all that may.

    scores: [R, C], likeliest first. total: `mass` of the whole vocabulary; None: `scores` hold it
    all, or every row's top_k of it. Returns [R, C] bool and [R] bool.

    min_p: see `floor`. top_k: the k likeliest. top_p: the fewest likeliest ones (of what the others
    left) whose chances sum to p (Holtzman et al., 2020); the likeliest always may.
    """
    count = scores.shape[1]
    bounds = upload([[option.top_k] for option in options], torch.int64, scores.device)
    top_p = column([option.top_p for option in options], scores)
    places = torch.arange(count, device=scores.device)
    kept = scores >= floor(scores[:, :1], options)
    within = kept & ((places < bounds) | (bounds == 0))
    weights = (scores - scores[:, :1]).double().exp().masked_fill_(~within, 0)
    sums = weights.sum(-1, keepdim=True)
    if total is None:
        inside = torch.ones_like(bounds, dtype=torch.bool)
    else:
        inside = ((bounds > 0) & (bounds <= count)) | ~kept[:, -1:]
        sums = sums.where(inside, total.unsqueeze(1))
    # Sums are compared in float32: layouts sum in another order, and differ in float64's last bits.
    reached = weights.cumsum(-1) / sums
    before = (reached - weights / sums).float()
    allowed = within & ((before < top_p) | (places == 0))
    covered = inside | ((bounds == 0) & (top_p < 1) & (reached[:, -1:].float() >= top_p))
    return allowed, covered.squeeze(1)


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """[R, 1] of `like`'s dtype and device."""
    return upload(values, like.dtype, like.device).unsqueeze(1)
