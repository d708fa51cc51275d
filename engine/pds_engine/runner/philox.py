"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A counter-based generator: a number depends on key and counter alone, so that there is no state to
carry, and any rank, batch or device computes the same bits. 32-bit words are held in int64 tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Four random words for a counter of four words and a key of two; all broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words may wrap int64's sign; its bits are right all the same.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _WORD) ^ c1 ^ k0,
            second & _WORD,
            ((first >> 32) & _WORD) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def gumbel(seeds: Sequence[int], choices: Sequence[int], indices: Sequence[int], vocab: int,
           device: torch.device) -> Tensor:  # fmt: skip
    """Standard Gumbel noise for every token id: [R, vocab] float64.

    Row r's noise of token t depends on (seeds[r], choices[r], indices[r], t) alone: token t takes
    word t mod 4 of counter (t div 4, index, choice, 0) under the seed's 64 bits as key. Float64, so
    that a last-place difference between devices' logarithms all but never changes who wins.
    """

    def column(values: Sequence[int]) -> Tensor:
        words = [value & _WORD for value in values]
        return torch.tensor(words, dtype=torch.int64, device=device).unsqueeze(1)

    blocks = torch.arange(-(-vocab // 4), device=device).unsqueeze(0)
    counter = (blocks, column(indices), column(choices), torch.zeros_like(blocks))
    key = (column(seeds), column([seed >> 32 for seed in seeds]))
    words = torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :vocab]
    uniform = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform))
