"""Tokens to rows that are sorted by expert, and back. Shapes depend on no content."""

from typing import NamedTuple

import torch
from torch import Tensor

from pds_kernels.grouped_gemm.plan import ExpertWeights, Feed


class Permuted(NamedTuple):
    """A row for each choice of each token, sorted by expert."""

    rows: Tensor
    """[T·k, hidden]; an expert's rows are in order of the tokens."""
    counts: Tensor
    """[E] int64: how many rows each expert has."""
    order: Tensor
    """[T·k] int64: which choice each row is: token · k + place among the token's choices."""


def permute(x: Tensor, ids: Tensor, count: int) -> Permuted:
    """x: [T, hidden]; ids: [T, k] int64, from 0 to `count`, the number of experts here. A choice of
    `count` itself is of an expert that is elsewhere: its rows come last and no expert has them."""
    by_expert, order = ids.flatten().sort(stable=True)
    bounds = torch.arange(count + 1, device=ids.device)
    counts = torch.searchsorted(by_expert, bounds).diff()
    return Permuted(x.index_select(0, order // ids.shape[1]), counts, order)


def unpermute(rows: Tensor, order: Tensor, choices: int, weights: Tensor | None) -> Tensor:
    """What the experts made of each token, summed: [T, hidden] in the dtype of `rows`.

    rows: [T·k, hidden], in the order of `permute`; choices: k; weights: [T, k], None: all are 1.
    A token's sum is taken in float32, in order of its choices: whichever rank computed a row, and
    wherever it stood among the rows.
    """
    tokens = len(rows) // choices
    at = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=rows.device))
    places = at.view(tokens, choices)
    total = rows.new_zeros(tokens, rows.shape[1], dtype=torch.float32)
    for choice in range(choices):
        part = rows.index_select(0, places[:, choice]).float()
        total += part if weights is None else part * weights[:, choice, None].float()
    return total.to(rows.dtype)


def experts(
    feed: Feed, x: Tensor, ids: Tensor, weights: Tensor | None, of_layer: ExpertWeights
) -> Tensor:
    """The weighted sum of what a token's experts make of it: [T, hidden] in the dtype of x.

    x: [T, hidden]; ids: [T, k] int64 and weights: [T, k], as a gate gives them. T may be 0. With
    tensor parallelism the result is this shard's part of a sum.
    """
    sorted_rows = permute(x, ids, of_layer.experts)
    out = feed(sorted_rows.rows, sorted_rows.counts, of_layer)
    return unpermute(out, sorted_rows.order, ids.shape[1], weights)
