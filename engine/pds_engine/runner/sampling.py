"""Choosing tokens: Gumbel-max with counter-based noise (pipeline.md).

argmax(logits / temperature + Gumbel noise) is a draw from the softmax (Gumbel, 1954). A row's token
depends on that row alone: not on the batch it is in, nor on the order or layout of the work. The
order of operations is: logit_bias, penalties, min_tokens; temperature; min_p, top_k, top_p; draw.
Log-probabilities are those of the model's own distribution, before any of it. Ties go to the
lowest id.

Logits are those of this rank's share of the vocabulary. Ranks exchange what a choice needs:
a value and an id a row, or its likeliest tokens; all logits only where these do not reach top_p.
"""

from collections.abc import Sequence

import torch
from pds_kernels import sampler
from pds_kernels.sampler import Draws, GumbelMax
from pds_kernels.sampler import Rows as Drawn
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.messages import Sampling
from pds_engine.parallel.collectives import ALONE, VocabShard
from pds_engine.runner.batch import Batch
from pds_engine.runner.candidates import (
    column,
    floor,
    likeliest,
    mass,
    nucleus,
)
from pds_engine.runner.scoring import Scores, score
from pds_engine.runner.tables import HostSlot, Tables, penalised

Rows = Sequence[tuple[HostSlot, int]]
"""Sampling rows: the slot's host part, and the index in the output that the token will have."""

UNSOUND = -1
"""In a token's place where the row's best score is not finite: NaN or infinity, which any NaN among
the scores makes it. All that the ranks choose by shows it, so it costs no exchange of its own."""
_COLD = 1e-5
"""Temperatures below this are greedy."""
_CANDIDATES = 256
"""The likeliest tokens that top_k and top_p are tried on, before all are."""


def kernel(vocab: VocabShard, device: torch.device) -> GumbelMax:
    """The best choice among this rank's tokens that there is on `device`."""
    geometry = sampler.Geometry(vocab.columns, vocab.ids.start, device)
    return sampler.choose(geometry).make(geometry)


def sample(
    logits: Tensor, batch: Batch, tables: Tables, vocab: VocabShard, gumbel_max: GumbelMax
) -> Tensor:
    """The next token of each sampling row, or UNSOUND: [R, V] float32 → [R] int64, the same on all
    ranks. `gumbel_max`: of `kernel`."""
    rows = batch.samples
    if any(_adjusted(slot.sampling) for slot, _ in rows):
        logits = adjust(logits.clone(), batch, tables, vocab)
    bounded = [at for at, (slot, _) in enumerate(rows) if _bounded(slot.sampling)]
    if not bounded:
        return choose(logits, rows, vocab, gumbel_max)
    free = [at for at, (slot, _) in enumerate(rows) if not _bounded(slot.sampling)]
    if not free:
        return draw(logits, rows, vocab)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    others, own = _places(free, logits), _places(bounded, logits)
    tokens[others] = choose(logits[others], [rows[at] for at in free], vocab, gumbel_max)
    tokens[own] = draw(logits[own], [rows[at] for at in bounded], vocab)
    return tokens


def _places(rows: Sequence[int], like: Tensor) -> Tensor:
    """Some rows of `like` as an index of tensors, on their device."""
    return upload(list(rows), torch.int64, like.device)


def _hot(sampling: Sampling) -> bool:
    return sampling.temperature >= _COLD


def _bounded(sampling: Sampling) -> bool:
    return _hot(sampling) and (sampling.top_k > 0 or sampling.top_p < 1)


def _adjusted(sampling: Sampling) -> bool:
    return bool(sampling.logit_bias) or sampling.min_tokens > 0 or penalised(sampling)


def adjust(logits: Tensor, batch: Batch, tables: Tables, vocab: VocabShard) -> Tensor:
    """Apply logit_bias, penalties and min_tokens in place; returns `logits`."""
    ids = vocab.ids
    for row, (slot, _) in zip(logits, batch.samples, strict=True):
        bias = {t - ids.start: b for t, b in slot.sampling.logit_bias.items() if t in ids}
        if bias:
            columns = upload(list(bias), torch.int64, row.device)
            row[columns] += upload(list(bias.values()), row.dtype, row.device)
    wanted = [at for at, (slot, _) in enumerate(batch.samples) if penalised(slot.sampling)]
    if wanted:
        options = [batch.samples[at][0].sampling for at in wanted]
        places = _places(wanted, logits)
        prompted, counts = (
            state[:, ids.start : ids.stop] for state in tables.penalty_state(batch.slots[places])
        )
        own = logits[places, : len(ids)]
        logits[places, : len(ids)] = penalise(own, prompted, counts, options)
    for row, (slot, index) in zip(logits, batch.samples, strict=True):
        if index < slot.sampling.min_tokens:
            stops = [t - ids.start for t in slot.sampling.stop_token_ids if t in ids]
            row[upload(stops, torch.int64, row.device)] = float("-inf")
    return logits


def penalise(
    logits: Tensor, prompted: Tensor, counts: Tensor, options: Sequence[Sampling]
) -> Tensor:
    """Repetition (prompt and output, multiplicative), presence and frequency (output, additive).

    logits [R, vocab]; prompted [R, vocab] bool; counts [R, vocab]. (Keskar et al., 2019; OpenAI.)
    """
    factor = column([option.repetition_penalty for option in options], logits)
    presence = column([option.presence_penalty for option in options], logits)
    frequency = column([option.frequency_penalty for option in options], logits)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(prompted | (counts > 0), repeated, logits)
    return logits - presence * (counts > 0) - frequency * counts


def choose(logits: Tensor, rows: Rows, vocab: VocabShard, gumbel_max: GumbelMax) -> Tensor:
    """The likeliest token of greedy rows, and one draw from the whole softmax of the others: [R].

    Ranks exchange their best value and its id, and nothing else.
    """
    temperatures = [slot.sampling.temperature if _hot(slot.sampling) else 0.0 for slot, _ in rows]
    drawn = Drawn.of(temperatures, _draws(rows, logits.device), _least(logits, rows, vocab))
    values, ids = gumbel_max(logits, drawn)
    if vocab.ranks.size > 1:
        pairs = torch.stack((values, ids.double()), dim=-1)
        values, found = vocab.ranks.gather(pairs).unbind(-1)
        # The first of equals is the lowest rank's, so the lowest id; a double holds any id exactly.
        best = values.argmax(0, keepdim=True)
        values, ids = values.gather(0, best)[0], found.gather(0, best)[0].long()
    return ids.masked_fill(~values.isfinite(), UNSOUND)


def _least(logits: Tensor, rows: Rows, vocab: VocabShard) -> Tensor | None:
    """The least score that each row's min_p leaves; None where no row has one."""
    hot = [at for at, (slot, _) in enumerate(rows) if _hot(slot.sampling)]
    options = [rows[at][0].sampling for at in hot]
    if all(option.min_p == 0 for option in options):
        return None
    places = _places(hot, logits)
    best = vocab.ranks.gather(logits[places].amax(-1, keepdim=True)).amax(0)
    best /= column([option.temperature for option in options], logits)
    least = logits.new_full((len(rows),), float("-inf"))
    least[places] = floor(best, options).squeeze(1)
    return least


def draw(
    logits: Tensor, rows: Rows, vocab: VocabShard, candidates: int | None = _CANDIDATES
) -> Tensor:
    """One draw per row at its temperature, within its min_p, top_k and top_p: [R] int64.

    candidates: the likeliest tokens that are looked at first; None: all, of a single rank. UNSOUND
    stands for a draw that there is not.
    """
    options = [slot.sampling for slot, _ in rows]
    scores = logits / column([option.temperature for option in options], logits)
    every = scores.shape[1] * vocab.ranks.size
    most = every if candidates is None else candidates
    likely, ids = likeliest(scores, most, vocab)
    total = None
    if most < every and not all(0 < option.top_k <= most for option in options):
        best = likely[:, :1]
        total = mass(scores, best, floor(best, options), vocab)
    allowed, covered = nucleus(likely, total, options)
    draws = _draws(rows, logits.device)
    # One by one, ids cost four times what consecutive ones do.
    noise = draws.gumbel(range(every)).gather(1, ids) if most >= every else draws.gumbel_of(ids)
    place = (noise + likely).masked_fill_(~allowed, float("-inf")).argmax(-1, keepdim=True)
    tokens = ids.gather(1, place).squeeze(1)
    # Each rank has computed the same; should ranks ever round differently, rank 0's word counts.
    tokens = vocab.ranks.broadcast(tokens.masked_fill(~covered, -1))
    left = [] if total is None else [at for at, t in enumerate(tokens.tolist()) if t < 0]
    if left:
        whole = vocab.ranks.gather(logits[left]).movedim(0, 1).flatten(1)
        alone = VocabShard(range(every), every, ALONE)
        found = draw(whole, [rows[at] for at in left], alone, None)
        tokens[left] = vocab.ranks.broadcast(found)
    return tokens.masked_fill(~likely[:, 0].isfinite(), UNSOUND)


def _draws(rows: Rows, device: torch.device) -> Draws:
    return Draws.of(
        [slot.seed for slot, _ in rows],
        [slot.sampling.choice for slot, _ in rows],
        [index for _, index in rows],
        device,
    )


def logprobs(
    logits: Tensor, tokens: Tensor, rows: Rows, vocab: VocabShard
) -> tuple[tuple[int, ...], Scores | None]:
    """Which rows ask for log-probabilities, and these: of the chosen token and the likeliest."""
    wanted = [at for at, (slot, _) in enumerate(rows) if slot.sampling.logprobs is not None]
    if not wanted:
        return (), None
    counts = [rows[at][0].sampling.logprobs or 0 for at in wanted]
    if len(wanted) < len(rows):
        places = _places(wanted, logits)
        logits, tokens = logits[places], tokens[places]
    return tuple(wanted), score(logits, tokens, counts, vocab)
