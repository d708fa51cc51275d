"""Log-probabilities under the model's own distribution, before any sampling option."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pds_kernels.sampler import unpack
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.messages import TokenLogprobs
from pds_engine.models.decoder import Decoder
from pds_engine.parallel.collectives import VocabShard
from pds_engine.runner.batch import Scored
from pds_engine.runner.candidates import merged, selector
from pds_engine.runner.rows import together

_POSITIONS = 64
"""Prompt positions whose scores of all tokens are held at once."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of R rows: each one's token, and its likeliest tokens."""

    own: Tensor
    """[R] float64."""
    values: Tensor
    """[R, K] float64, the likeliest first."""
    ids: Tensor
    """[R, K] int64."""
    counts: tuple[int, ...]
    """How many of the K each row asks for."""

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor's copy in its place."""
        return replace(self, own=copy(self.own), values=copy(self.values), ids=copy(self.ids))

    def read(self) -> list[TokenLogprobs]:
        """Of tensors on the host."""
        found = self.own.tolist(), self.values.tolist(), self.ids.tolist(), self.counts
        return [
            TokenLogprobs(own, tuple(zip(ids[:count], values[:count], strict=True)))
            for own, values, ids, count in zip(*found, strict=True)
        ]


def score(logits: Tensor, tokens: Tensor, likeliest: Sequence[int], vocab: VocabShard) -> Scores:
    """Of each row, that of its token, and of as many of the likeliest as it asks for.

    logits: [R, V] of this rank's tokens; tokens: [R]. Ranks exchange nothing but these.
    """
    most = min(max(likeliest), vocab.total)
    columns = tokens.unsqueeze(1) - vocab.ids.start
    foreign = (columns < 0) | (columns >= logits.shape[1])
    chosen = logits.gather(1, columns.masked_fill(foreign, 0)).masked_fill_(foreign, float("-inf"))
    selection, ones = selector(vocab, logits.device), logits.new_ones(len(logits))
    likely = selection.likeliest(logits, ones, max(most, 1))
    sums = selection.log_sum(logits).unsqueeze(1)
    # One gather for all: the bits of two floats travel beside the packed candidates.
    floats = torch.cat((sums, chosen.double()), dim=-1).view(torch.int64)
    gathered = vocab.ranks.gather(torch.cat((floats, likely), dim=-1))
    sums, chosen = gathered[..., :2].contiguous().view(torch.float64).unbind(-1)
    total = sums.logsumexp(0)
    scores, ids = unpack(merged(gathered[..., 2:], most))
    values = scores.double() - total.unsqueeze(1)
    return Scores(chosen.amax(0) - total, values, ids, tuple(likeliest))


def prompt_logprobs(
    decoder: Decoder, hidden: Tensor, wanted: Sequence[Scored]
) -> tuple[tuple[Scores, ...], ...]:
    """Those of each part of a prompt, from this rank's part of the last layer's output."""
    return tuple(
        tuple(
            _some(decoder, hidden, part, start) for start in range(0, len(part.tokens), _POSITIONS)
        )
        for part in wanted
    )


def _some(decoder: Decoder, hidden: Tensor, part: Scored, start: int) -> Scores:
    following = part.tokens[start : start + _POSITIONS]
    at = part.at + start
    tokens = upload(following, torch.int64, hidden.device)
    rows = together(hidden, range(at, at + len(following)), decoder.ranks.attention)
    logits = decoder.logits(rows)
    return score(logits, tokens, [part.likeliest] * len(following), decoder.vocab)
