"""The choice of tokens in plain torch: the definition."""

from functools import partial

from torch import Tensor

from pds_kernels.sampler.plan import Geometry, GumbelMax, Rows


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
