"""The choice of tokens in plain torch: the definition."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pds_kernels.sampler.order import nucleus, pack
from pds_kernels.sampler.plan import Bounds, Geometry, GumbelMax, Penalties, Rows


def make(geometry: Geometry) -> GumbelMax:
    """Nothing is kept from call to call."""
    return partial(gumbel_max, first=geometry.first)


def gumbel_max(logits: Tensor, rows: Rows, first: int) -> tuple[Tensor, Tensor]:
    """plan.GumbelMax; `first` is the id of column 0."""
    values, columns = logits.max(-1)
    values = values.double()
    if rows.hot:
        hot = list(rows.hot)
        whole = len(hot) == len(logits)
        own = logits if whole else logits[hot]
        scores = own / rows.temperatures[hot].unsqueeze(1)
        if rows.least is not None:
            scores = scores.masked_fill(scores < rows.least[hot].unsqueeze(1), float("-inf"))
        draws = rows.draws if whole else rows.draws.take(hot)
        noise = draws.gumbel(range(first, first + logits.shape[1]))
        values[hot], columns[hot] = (noise + scores).max(-1)
    return values, columns + first


def selection(geometry: Geometry) -> "InTorch":
    """Nothing is kept from call to call."""
    return InTorch(geometry.first)


class InTorch:
    """plan.Selection."""

    at_once = False

    def __init__(self, first: int) -> None:
        self._first = first

    def likeliest(self, logits: Tensor, temperatures: Tensor, most: int) -> Tensor:
        scores = pack(logits / temperatures.unsqueeze(1), self._first)
        return scores.topk(min(most, scores.shape[1])).values

    def mass(self, logits: Tensor, temperatures: Tensor, best: Tensor, least: Tensor) -> Tensor:
        scores = logits / temperatures.unsqueeze(1)
        weights = (scores - best.unsqueeze(1)).double().exp()
        return weights.masked_fill_(scores < least.unsqueeze(1), 0).sum(-1)

    def log_sum(self, logits: Tensor) -> Tensor:
        return logits.double().logsumexp(-1)

    def draw(self, logits: Tensor, rows: Rows, bounds: Bounds) -> tuple[Tensor, Tensor]:
        temperatures = rows.temperatures.unsqueeze(1)
        greedy = temperatures == 0
        scores = logits / temperatures.masked_fill(greedy, 1)
        ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
        allowed, _ = nucleus(ordered, None, bounds)
        noise = rows.draws.gumbel(range(logits.shape[1])).gather(1, ids).masked_fill_(greedy, 0)
        values = (noise + ordered).masked_fill_(~allowed, float("-inf"))
        values, place = values.max(-1, keepdim=True)
        return values.squeeze(1), ids.gather(1, place).squeeze(1)

    def penalise(self, logits: Tensor, penalties: Penalties) -> Callable[[], None]:
        """Whole rows are copied: which columns change is known on the device alone."""
        rows, count = penalties.rows, penalties.prompted.shape[1]
        before = logits[rows, :count]
        repetition, presence, frequency = (
            each.unsqueeze(1)
            for each in (penalties.repetition, penalties.presence, penalties.frequency)
        )
        counts = penalties.counts[penalties.slots]
        seen = penalties.prompted[penalties.slots] | (counts > 0)
        repeated = torch.where(before > 0, before / repetition, before * repetition)
        after = torch.where(seen, repeated, before)
        logits[rows, :count] = after - presence * (counts > 0) - frequency * counts

        def restore() -> None:
            logits[rows, :count] = before

        return restore
