"""The gate in plain torch: the definition."""

from functools import partial

from torch import Tensor

from pds_kernels.moe_gate.plan import Gate, Geometry

_NO_ZERO = 1e-20
"""DeepSeek-V3 adds it to a sum before it divides. It changes no sum above 1e-12."""


def make(geometry: Geometry) -> Gate:
    """Nothing is kept from call to call."""
    return partial(gate, geometry)


def gate(
    geometry: Geometry, logits: Tensor, correction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """plan.Gate, once `geometry` is given."""
    scores = _scores(geometry, logits.float())
    ranked = scores if correction is None else scores + correction
    if geometry.groups > 1:
        ranked = ranked.masked_fill(~_in_best_groups(geometry, ranked), float("-inf"))
    ids = _best(ranked, geometry.top_k)
    weights = scores.gather(1, ids)
    if geometry.score == "softmax of chosen":
        weights = weights.softmax(-1)
    if geometry.renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + _NO_ZERO)
    return weights * geometry.scaling, ids


def _scores(geometry: Geometry, logits: Tensor) -> Tensor:
    match geometry.score:
        case "softmax":
            return logits.softmax(-1)
        case "sigmoid":
            return logits.sigmoid()
        case "softmax of chosen":
            return logits


def _in_best_groups(geometry: Geometry, ranked: Tensor) -> Tensor:
    """[T, experts] bool: whether the expert's group is one of the token's `top_groups`."""
    size = geometry.experts // geometry.groups
    members = ranked.view(len(ranked), geometry.groups, size)
    best = 1 if geometry.group_score == "max" else 2
    chosen = _best(members.topk(min(best, size), -1).values.sum(-1), geometry.top_groups)
    kept = chosen.new_zeros(len(ranked), geometry.groups).scatter_(1, chosen, 1)
    return kept.bool().repeat_interleave(size, 1)


def _best(scores: Tensor, count: int) -> Tensor:
    """Where the `count` greatest of each row are, the greatest first and equal ones in order.

    torch.topk leaves open which of equal ones it takes: its CPU and CUDA kernels differ, and so do
    those for other sizes. The values that it gives are the same.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
