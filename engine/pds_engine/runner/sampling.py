"""Choosing tokens: Gumbel-max with counter-based noise (pipeline.md).

argmax(logits / temperature + Gumbel noise) is a draw from the softmax (Gumbel, 1954). A row's token
depends on that row alone: not on the batch it is in, nor on the order or layout of the work. The
order of operations is: logit_bias, penalties, min_tokens; temperature; min_p, top_k, top_p; draw.
Log-probabilities are those of the model's own distribution, before any of it. Ties go to the
lowest id.

Logits are those of this rank's share of the vocabulary. Ranks exchange what a choice needs:
a value and an id a row, or its likeliest tokens; all logits only where these do not reach top_p.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pds_kernels import sampler
from pds_kernels.sampler import Draws, GumbelMax, Penalties, nucleus
from pds_kernels.sampler import Rows as Drawn
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.messages import Sampling
from pds_engine.parallel.collectives import ALONE, VocabShard
from pds_engine.runner.batch import Batch
from pds_engine.runner.candidates import bounds_of, likeliest, selector
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
    ranks. `gumbel_max`: of `kernel`. Afterwards `logits` are what they were."""
    restores = adjust(logits, batch, tables, vocab)
    tokens = _sample(logits, batch.samples, vocab, gumbel_max)
    for restore in reversed(restores):
        restore()
    return tokens


def _sample(logits: Tensor, rows: Rows, vocab: VocabShard, gumbel_max: GumbelMax) -> Tensor:
    options = [slot.sampling for slot, _ in rows]
    if not any(_bounded(option) or option.min_p > 0 for option in options):
        return choose(logits, rows, vocab, gumbel_max)
    if vocab.ranks.size == 1:
        selection = selector(vocab, logits.device)
        if selection.at_once:
            bounds = bounds_of(options, logits.device)
            values, ids = selection.draw(logits, _drawn(rows, logits.device), bounds)
            return ids.masked_fill(~values.isfinite(), UNSOUND)
    bounded = [at for at, option in enumerate(options) if _bounded(option)]
    if not bounded:
        return choose(logits, rows, vocab, gumbel_max)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    free = [at for at, option in enumerate(options) if not _bounded(option)]
    if not free:
        return draw(logits, rows, vocab)
    others, own = (upload(each, torch.int64, logits.device) for each in (free, bounded))
    tokens[others] = choose(logits[others], [rows[at] for at in free], vocab, gumbel_max)
    tokens[own] = draw(logits[own], [rows[at] for at in bounded], vocab)
    return tokens


def _hot(sampling: Sampling) -> bool:
    return sampling.temperature >= _COLD


def _bounded(sampling: Sampling) -> bool:
    return _hot(sampling) and (sampling.top_k > 0 or sampling.top_p < 1)


def adjust(
    logits: Tensor, batch: Batch, tables: Tables, vocab: VocabShard
) -> list[Callable[[], None]]:
    """Apply logit_bias, penalties and min_tokens in place, to the rows that ask. Returns what puts
    them back, to be called from last to first."""
    rows, ids, restores = batch.samples, vocab.ids, []
    biased = [
        (at, token - ids.start, bias)
        for at, (slot, _) in enumerate(rows)
        for token, bias in slot.sampling.logit_bias.items()
        if token in ids
    ]
    if biased:
        places = _places([(at, place) for at, place, _ in biased], logits.device)
        sums = logits[places] + _floats([bias for _, _, bias in biased], logits)
        restores.append(_put(logits, places, sums))
    wanted = [at for at, (slot, _) in enumerate(rows) if penalised(slot.sampling)]
    if wanted:
        restores.append(_penalise(logits, wanted, batch, tables, vocab))
    stops = [
        (at, token - ids.start)
        for at, (slot, index) in enumerate(rows)
        if index < slot.sampling.min_tokens
        for token in slot.sampling.stop_token_ids
        if token in ids
    ]
    if stops:
        places = _places(stops, logits.device)
        restores.append(_put(logits, places, logits.new_tensor(float("-inf"))))
    return restores


def _put(logits: Tensor, at: tuple[Tensor, ...], values: Tensor) -> Callable[[], None]:
    """Set logits at rows and columns; returns what puts them back."""
    before = logits[at]
    logits[at] = values

    def restore() -> None:
        logits[at] = before

    return restore


def _places(places: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, ...]:
    return upload(places, torch.int64, device).unbind(1)


def _penalise(
    logits: Tensor, wanted: Sequence[int], batch: Batch, tables: Tables, vocab: VocabShard
) -> Callable[[], None]:
    options = [batch.samples[at][0].sampling for at in wanted]
    rows = upload(wanted, torch.int64, logits.device)
    prompted, counts = tables.penalty_tables()
    mine = slice(vocab.ids.start, vocab.ids.stop)
    penalties = Penalties(
        rows=rows,
        slots=batch.slots[rows],
        prompted=prompted[:, mine],
        counts=counts[:, mine],
        repetition=_floats([option.repetition_penalty for option in options], logits),
        presence=_floats([option.presence_penalty for option in options], logits),
        frequency=_floats([option.frequency_penalty for option in options], logits),
    )
    return selector(vocab, logits.device).penalise(logits, penalties)


def choose(logits: Tensor, rows: Rows, vocab: VocabShard, gumbel_max: GumbelMax) -> Tensor:
    """The likeliest token of greedy rows, and one draw from the whole softmax of the others: [R].

    Ranks exchange their best value and its id, and nothing else.
    """
    drawn = _drawn(rows, logits.device)
    values, ids = gumbel_max(logits, _above_min_p(logits, rows, drawn, vocab, gumbel_max))
    if vocab.ranks.size > 1:
        pairs = torch.stack((values, ids.double()), dim=-1)
        values, found = vocab.ranks.gather(pairs).unbind(-1)
        # The first of equals is the lowest rank's, so the lowest id; a double holds any id exactly.
        best = values.argmax(0, keepdim=True)
        values, ids = values.gather(0, best)[0], found.gather(0, best)[0].long()
    return ids.masked_fill(~values.isfinite(), UNSOUND)


def _above_min_p(
    logits: Tensor, rows: Rows, drawn: Drawn, vocab: VocabShard, gumbel_max: GumbelMax
) -> Drawn:
    """With the least score that each row's min_p leaves, where a row has one."""
    parts = [slot.sampling.min_p if _hot(slot.sampling) else 0.0 for slot, _ in rows]
    if not any(parts):
        return drawn
    greedy = Drawn.of([0.0] * len(rows), drawn.draws)
    best = vocab.ranks.gather(gumbel_max(logits, greedy)[0].float()).amax(0)
    best /= drawn.temperatures.masked_fill(drawn.temperatures == 0, 1)
    return replace(drawn, least=best + _floats(parts, logits).log())


def draw(logits: Tensor, rows: Rows, vocab: VocabShard, candidates: int = _CANDIDATES) -> Tensor:
    """One draw per row at its temperature, within its min_p, top_k and top_p: [R] int64.

    candidates: the likeliest tokens that are looked at first; all are where these are not all that
    may be drawn. UNSOUND stands for a draw that there is not.
    """
    options, device = [slot.sampling for slot, _ in rows], logits.device
    selection, bounds, drawn = (
        selector(vocab, device),
        bounds_of(options, device),
        _drawn(rows, device),
    )
    likely, ids = likeliest(logits, drawn.temperatures, candidates, vocab, selection)
    total = None
    every = vocab.columns * vocab.ranks.size
    if candidates < every and not all(0 < option.top_k <= candidates for option in options):
        best = likely[:, 0]
        least = best + bounds.log_min_p
        own = selection.mass(logits, drawn.temperatures, best, least)
        total = vocab.ranks.gather(own).sum(0)
    allowed, covered = nucleus(likely, total, bounds)
    noise = drawn.draws.gumbel_of(ids)
    place = (noise + likely).masked_fill_(~allowed, float("-inf")).argmax(-1, keepdim=True)
    tokens = ids.gather(1, place).squeeze(1)
    # Each rank has computed the same; should ranks ever round differently, rank 0's word counts.
    tokens = vocab.ranks.broadcast(tokens.masked_fill(~covered, -1))
    left = [] if total is None else [at for at, t in enumerate(tokens.tolist()) if t < 0]
    if left:
        whole = vocab.ranks.gather(logits[left]).movedim(0, 1).flatten(1)
        alone = selector(VocabShard(range(every), every, ALONE), device)
        again = [rows[at] for at in left]
        bounds = bounds_of([options[at] for at in left], device)
        _, found = alone.draw(whole, _drawn(again, device), bounds)
        tokens[left] = vocab.ranks.broadcast(found)
    return tokens.masked_fill(~likely[:, 0].isfinite(), UNSOUND)


def _drawn(rows: Rows, device: torch.device) -> Drawn:
    temperatures = [slot.sampling.temperature if _hot(slot.sampling) else 0.0 for slot, _ in rows]
    draws = Draws.of(
        [slot.seed for slot, _ in rows],
        [slot.sampling.choice for slot, _ in rows],
        [index for _, index in rows],
        device,
    )
    return Drawn.of(temperatures, draws)


def _floats(values: Sequence[float], like: Tensor) -> Tensor:
    """[R] of `like`'s dtype and device."""
    return upload(values, like.dtype, like.device)


def logprobs(
    logits: Tensor, tokens: Tensor, rows: Rows, vocab: VocabShard
) -> tuple[tuple[int, ...], Scores | None]:
    """Which rows ask for log-probabilities, and these: of the chosen token and the likeliest."""
    wanted = [at for at, (slot, _) in enumerate(rows) if slot.sampling.logprobs is not None]
    if not wanted:
        return (), None
    counts = [rows[at][0].sampling.logprobs or 0 for at in wanted]
    if len(wanted) < len(rows):
        places = upload(wanted, torch.int64, logits.device)
        logits, tokens = logits[places], tokens[places]
    return tuple(wanted), score(logits, tokens, counts, vocab)
