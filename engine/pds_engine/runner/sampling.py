"""Choosing tokens: Gumbel-max with counter-based noise (engine.md §4).

argmax(logits / temperature + Gumbel noise) is a draw from the softmax (Gumbel, 1954). A row's token
depends on that row alone: not on the batch it is in, nor on the order or layout of the work. The
order of operations is: logit_bias, penalties, min_tokens; temperature; min_p, top_k, top_p; draw.
Log-probabilities are those of the model's own distribution, before any of it. Ties go to the
lowest id.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pds_engine.messages import Sampling, TokenLogprobs
from pds_engine.runner.batch import Batch
from pds_engine.runner.philox import gumbel
from pds_engine.runner.tables import Slot, Tables, penalised

_COLD = 1e-5
"""Temperatures below this are greedy."""


def sample(logits: Tensor, batch: Batch, tables: Tables) -> Tensor:
    """The next token of each sampling row: [R, vocab] float32 → [R] int64."""
    rows = batch.samples
    if any(_adjusted(slot.sampling) for slot, _ in rows):
        logits = adjust(logits.clone(), batch, tables)
    tokens = logits.argmax(-1)
    hot = [at for at, (slot, _) in enumerate(rows) if slot.sampling.temperature >= _COLD]
    if hot:
        drawn = draw(logits if len(hot) == len(rows) else logits[hot], [rows[at] for at in hot])
        tokens[hot] = drawn
    return tokens


def _adjusted(sampling: Sampling) -> bool:
    return bool(sampling.logit_bias) or sampling.min_tokens > 0 or penalised(sampling)


def adjust(logits: Tensor, batch: Batch, tables: Tables) -> Tensor:
    """Apply logit_bias, penalties and min_tokens in place; returns `logits`."""
    for row, (slot, _) in zip(logits, batch.samples, strict=True):
        bias = {t: b for t, b in slot.sampling.logit_bias.items() if 0 <= t < len(row)}
        if bias:
            ids = torch.tensor(list(bias), device=row.device)
            row[ids] += torch.tensor(list(bias.values()), dtype=row.dtype, device=row.device)
    wanted = [at for at, (slot, _) in enumerate(batch.samples) if penalised(slot.sampling)]
    if wanted:
        options = [batch.samples[at][0].sampling for at in wanted]
        state = tables.penalty_state(batch.slots[wanted])
        logits[wanted] = penalise(logits[wanted], *state, options)
    for row, (slot, index) in zip(logits, batch.samples, strict=True):
        if index < slot.sampling.min_tokens:
            row[[t for t in slot.sampling.stop_token_ids if 0 <= t < len(row)]] = float("-inf")
    return logits


def penalise(
    logits: Tensor, prompted: Tensor, counts: Tensor, options: Sequence[Sampling]
) -> Tensor:
    """Repetition (prompt and output, multiplicative), presence and frequency (output, additive).

    logits [R, vocab]; prompted [R, vocab] bool; counts [R, vocab]. (Keskar et al., 2019; OpenAI.)
    """
    factor = _column([option.repetition_penalty for option in options], logits)
    presence = _column([option.presence_penalty for option in options], logits)
    frequency = _column([option.frequency_penalty for option in options], logits)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(prompted | (counts > 0), repeated, logits)
    return logits - presence * (counts > 0) - frequency * counts


def draw(logits: Tensor, rows: Sequence[tuple[Slot, int]]) -> Tensor:
    """One draw per row at its temperature, within its min_p, top_k and top_p."""
    options = [slot.sampling for slot, _ in rows]
    scores = logits / _column([option.temperature for option in options], logits)
    if any(option.min_p > 0 or option.top_k > 0 or option.top_p < 1 for option in options):
        scores = scores.masked_fill(~eligible(scores, options), float("-inf"))
    noise = gumbel(
        [slot.seed for slot, _ in rows],
        [option.choice for option in options],
        [index for _, index in rows],
        logits.shape[1],
        logits.device,
    )
    return (scores.double() + noise).argmax(-1)


def eligible(scores: Tensor, options: Sequence[Sampling]) -> Tensor:
    """Which tokens may be drawn: [R, vocab] bool; the likeliest always may.

    min_p: at least that part of the likeliest's probability. top_k: the k likeliest. top_p: the
    fewest likeliest ones (of what top_k left) whose probabilities sum to p (Holtzman et al., 2020).
    """
    vocab = scores.shape[1]
    floor = _column([option.min_p for option in options], scores).log()
    kept = scores >= scores.amax(-1, keepdim=True) + floor
    left = scores.masked_fill(~kept, float("-inf"))
    sorted_scores, order = left.sort(dim=-1, descending=True, stable=True)
    bounds = torch.tensor([option.top_k or vocab for option in options], device=scores.device)
    places = torch.arange(vocab, device=scores.device)
    within = places < bounds.unsqueeze(1)
    chances = sorted_scores.masked_fill(~within, float("-inf")).softmax(-1)
    before = chances.cumsum(-1) - chances
    within &= (before < _column([option.top_p for option in options], scores)) | (places == 0)
    within &= sorted_scores > float("-inf")
    return torch.zeros_like(kept).scatter(1, order, within)


def logprobs(
    logits: Tensor, tokens: Tensor, rows: Sequence[tuple[Slot, int]]
) -> tuple[TokenLogprobs | None, ...]:
    """Of each row that asks: the chosen token's log-probability, and the likeliest ones'."""
    wanted = [at for at, (slot, _) in enumerate(rows) if slot.sampling.logprobs is not None]
    result: list[TokenLogprobs | None] = [None] * len(rows)
    if not wanted:
        return tuple(result)
    scores = logits[wanted].log_softmax(-1)
    chosen = scores.gather(1, tokens[wanted].unsqueeze(1)).squeeze(1).tolist()
    most = min(max(rows[at][0].sampling.logprobs or 0 for at in wanted), logits.shape[1])
    values, ids = (part.tolist() for part in scores.topk(most, dim=-1))
    for place, at in enumerate(wanted):
        count = rows[at][0].sampling.logprobs or 0
        top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        result[at] = TokenLogprobs(chosen[place], top)
    return tuple(result)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
