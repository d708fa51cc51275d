"""An answer beside transformers' scores of that very answer."""

from collections.abc import Callable, Sequence

import pytest
import torch
from pds_engine.messages import Submit, Token, TokenLogprobs

CLOSE = 1e-4
"""Two scores that differ by less tie."""


def assert_scores(sent: TokenLogprobs, row: torch.Tensor, chosen: int, count: int) -> None:
    """An engine's scores of one place are those of transformers: the token's, and the best."""
    assert sent.chosen == pytest.approx(row[chosen].item(), abs=CLOSE)
    values = [value for _, value in sent.top]
    assert values == pytest.approx(row.topk(count).values.tolist(), abs=CLOSE)
    assert values == pytest.approx([row[token].item() for token, _ in sent.top], abs=CLOSE)


def compare(
    asked: Submit,
    sent: Sequence[Token],
    logprobs: Callable[[tuple[int, ...]], torch.Tensor],
) -> int:
    """One answer with transformers; how many ties there were."""
    ids, options = asked.prompt_ids, asked.sampling
    tokens = [token.token for token in sent]
    assert len(tokens) == options.max_tokens
    table = logprobs((*ids, *tokens))
    ties = 0
    for row, token in zip(table[len(ids) - 1 :], sent, strict=False):
        if options.temperature == 0:
            best = row.topk(2).values
            assert row[token.token] > best[0] - CLOSE, (asked.request_id, token.index)
            ties += int(best[0] - best[1] < CLOSE)
        if options.logprobs is None:
            assert token.logprobs is None
        else:
            assert token.logprobs is not None
            assert_scores(token.logprobs, row, token.token, options.logprobs)
    first, *others = sent
    assert not any(token.prompt_logprobs for token in others)
    asks = options.prompt_logprobs
    assert len(first.prompt_logprobs) == (0 if asks is None else len(ids) - 1)
    for scores, row, after in zip(first.prompt_logprobs, table, ids[1:], strict=False):
        assert_scores(scores, row, after, asks or 0)
    return ties
