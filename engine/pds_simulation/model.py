"""Hashes that stand for a model: cheap, and different for every difference in what they are given.

A token at a position becomes a number; each layer writes a key of it to the KV cache and mixes it
with all keys up to there, or those of a sliding window, each by where it was read; the last number
of a row makes the token.

Python's hash of a tuple of integers is the same in every process: only strings are salted.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pds_engine.messages import Sampling, Submit, TokenLogprobs

VOCAB = 997
_KEY = (1 << 30) - 1
_CHANCE = 1 << 20


def embed(token: int, position: int) -> int:
    return hash((token, position))


def key(hidden: int, layer: int) -> int:
    """What the KV cache holds of a token in one layer."""
    return hash((hidden, layer)) & _KEY


def attended(keys: Sequence[int], first: int = 0) -> int:
    """What `keys`, read at positions `first` …, are together; each counts by where it was read."""
    return sum(map(operator.mul, keys, range(first + 1, first + len(keys) + 1)))


def mix(hidden: int, attention: int, layer: int) -> int:
    return hash((hidden, attention, layer))


def history(outputs: Sequence[int]) -> int:
    """What penalties make of the tokens so far."""
    total = 0
    for token in outputs:
        total = hash((total, token))
    return total


def sample(hidden: int, sampling: Sampling, seed: int, index: int, said: int) -> int:
    """Output number `index`; `said` is the history of those before. As the engine's sampler: a
    seeded choice depends on seed, choice and index, and stop ids are not drawn too early."""
    penalised = (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )
    drawn = (seed, sampling.choice, index) if sampling.temperature else ()
    token = hash((hidden, said if penalised else 0, *drawn)) % VOCAB
    while index < sampling.min_tokens and token in sampling.stop_token_ids:
        token = (token + 1) % VOCAB
    return token


def logprobs(hidden: int, token: int, wanted: int | None) -> TokenLogprobs | None:
    """Scores that a wrong row or token would change."""
    if wanted is None:
        return None

    def score(candidate: int) -> float:
        return -(1 + hash((hidden, candidate)) % _CHANCE) / _CHANCE

    top = tuple((candidate, score(candidate)) for candidate in range(wanted))
    return TokenLogprobs(score(token), top)


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """What a request is to be answered with, from its first new token on."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]


def answer(request: Submit, layers: int, window: int | None = None) -> ExpectedAnswer:
    """Computed from scratch, with no page, chunk, stage, batch or plan in between.

    Args:
        window: tokens that a token sees, itself included; None: all before it.
    """
    asked, outputs = request.sampling, list(request.output_ids)
    scores: list[TokenLogprobs | None] = []
    for hidden in _last_hidden(request.prompt_ids, layers, outputs, window):
        index = len(outputs)
        token = sample(hidden, asked, request.seed, index, history(outputs))
        scores.append(logprobs(hidden, token, asked.logprobs))
        outputs.append(token)
        if token in asked.stop_token_ids and index >= asked.min_tokens:
            break
        if len(outputs) == asked.max_tokens:
            break
    return ExpectedAnswer(tuple(outputs[len(request.output_ids) :]), tuple(scores))


def _last_hidden(
    prompt: Sequence[int], layers: int, outputs: list[int], window: int | None
) -> Iterator[int]:
    """The last layer's number of the last position, again each time `outputs` has grown."""
    attention = [0] * layers
    seen: list[list[int]] = [[] for _ in range(layers)]
    """What each key adds, by layer."""
    tokens, position = [*prompt, *outputs], 0
    while True:
        hidden = 0
        for token in tokens:
            hidden = embed(token, position)
            for layer in range(layers):
                seen[layer].append((position + 1) * key(hidden, layer))
                attention[layer] += seen[layer][-1]
                if window is not None and position >= window:
                    attention[layer] -= seen[layer][position - window]
                hidden = mix(hidden, attention[layer], layer)
            position += 1
        yield hidden
        tokens = outputs[-1:]
