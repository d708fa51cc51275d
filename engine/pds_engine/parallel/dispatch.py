"""Rows to the ranks that hold their experts, and what these made of them back again.

Three all-to-alls: how many rows each expert gets, the rows, the results. Counts go first, since
nobody knows where others' tokens go; to send rows of a number that is known, each rank would have
to have room for all the tokens' choices of every other one, and would send so many bytes.

Every rank makes the same calls in every pass, one without tokens or without experts, too.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pds_engine.parallel.collectives import Collectives


class Received(NamedTuple):
    """Rows that a rank's experts are to work on, by the rank they came from."""

    rows: Tensor
    """[M, hidden]; those of one rank are sorted by expert."""
    experts: Tensor
    """[M] int64: which of this rank's experts each row is for, from 0."""
    sent: tuple[int, ...]
    """Rows that this rank has sent to each rank."""
    taken: tuple[int, ...]
    """Rows that it has from each."""


def to_experts(rows: Tensor, counts: Tensor, held: Sequence[int], ranks: Collectives) -> Received:
    """Each row to the rank that has its expert.

    rows: [N, hidden], sorted by expert; counts: [E] int64, rows of each expert; held: how many
    experts each rank has, which are numbered in order of rank.
    """
    own = (held[ranks.rank],) * ranks.size
    theirs = ranks.all_to_all(counts, held, own)
    both = ranks.read(torch.cat((counts, theirs)), len(rows))  # from the device at once
    sent, taken = _sums(both[: len(counts)], held), _sums(both[len(counts) :], own)
    numbers = torch.arange(own[0], device=rows.device).repeat(ranks.size)
    return Received(
        rows=ranks.all_to_all(rows, sent, taken),
        experts=numbers.repeat_interleave(theirs, output_size=sum(taken)),
        sent=sent,
        taken=taken,
    )


def to_tokens(made: Tensor, received: Received, ranks: Collectives) -> Tensor:
    """What was made of `received.rows`, to the ranks that they came from: [N, hidden], in the order
    in which these have sent them."""
    return ranks.all_to_all(made, received.taken, received.sent)


def _sums(counts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """The sums of parts of `counts`, one after another, of these lengths."""
    ends = [0, *accumulate(counts)]
    bounds = [0, *accumulate(lengths)]
    return tuple(ends[stop] - ends[start] for start, stop in pairwise(bounds))
