"""Log-probabilities under the model's own distribution, before any sampling option."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pds_engine.messages import TokenLogprobs
from pds_engine.models.decoder import Decoder
from pds_engine.parallel.collectives import VocabShard
from pds_engine.runner.batch import Scored
from pds_engine.runner.candidates import merged, pack, unpack
from pds_engine.runner.rows import together

_POSITIONS = 64
"""Prompt positions whose scores of all tokens are held at once."""


def score(
    logits: Tensor, tokens: Tensor, likeliest: Sequence[int], vocab: VocabShard
) -> list[TokenLogprobs]:
    """Of each row, that of its token, and of as many of the likeliest as it asks for.

    logits: [R, V] of this rank's tokens; tokens: [R]. Ranks exchange nothing but these.
    """
    most = min(max(likeliest), vocab.total)
    columns = tokens.unsqueeze(1) - vocab.ids.start
    foreign = (columns < 0) | (columns >= logits.shape[1])
    chosen = logits.gather(1, columns.masked_fill(foreign, 0)).masked_fill_(foreign, float("-inf"))
    sums = logits.double().logsumexp(-1, keepdim=True)
    likely = pack(logits, vocab.ids.start).topk(min(most, logits.shape[1])).values
    # One gather for all: the bits of two floats travel beside the packed candidates.
    floats = torch.cat((sums, chosen.double()), dim=-1).view(torch.int64)
    gathered = vocab.ranks.gather(torch.cat((floats, likely), dim=-1))
    sums, chosen = gathered[..., :2].contiguous().view(torch.float64).unbind(-1)
    total = sums.logsumexp(0)
    scores, ids = unpack(merged(gathered[..., 2:], most))
    first = (chosen.amax(0) - total).tolist()
    values = (scores.double() - total.unsqueeze(1)).tolist()
    return [
        TokenLogprobs(own, tuple(zip(named[:count], found[:count], strict=True)))
        for own, named, found, count in zip(first, ids.tolist(), values, likeliest, strict=True)
    ]


def prompt_logprobs(
    decoder: Decoder, hidden: Tensor, wanted: Sequence[Scored]
) -> tuple[tuple[TokenLogprobs, ...], ...]:
    """Those of each part of a prompt, from this rank's part of the last layer's output."""
    return tuple(
        tuple(
            one
            for start in range(0, len(part.tokens), _POSITIONS)
            for one in _some(decoder, hidden, part, start)
        )
        for part in wanted
    )


def _some(decoder: Decoder, hidden: Tensor, part: Scored, start: int) -> list[TokenLogprobs]:
    following = part.tokens[start : start + _POSITIONS]
    at = part.at + start
    tokens = torch.tensor(following, device=hidden.device)
    rows = together(hidden, range(at, at + len(following)), decoder.ranks.attention)
    logits = decoder.logits(rows)
    return score(logits, tokens, [part.likeliest] * len(following), decoder.vocab)
