"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A counter-based generator: a number depends on key and counter alone, so that there is no state to
carry, and any rank, batch or device computes the same bits. 32-bit words are held in int64 tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pds_kernels.upload import upload

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


@dataclass(frozen=True, slots=True)
class Draws:
    """What makes each row's noise its own: [R, 1] words for a seed, a choice, and output index.

    Token t of a row takes word t mod 4 of counter (t div 4, index, choice, 0) under the seed's 64
    bits as key. Its noise depends on these and t alone, so that any rank makes its own tokens'.
    """

    counter: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]

    @classmethod
    def of(
        cls, seeds: Sequence[int], choices: Sequence[int], indices: Sequence[int],
        device: torch.device,
    ) -> Self:  # fmt: skip
        def column(values: Sequence[int]) -> Tensor:
            words = [value & _WORD for value in values]
            return upload(words, torch.int64, device).unsqueeze(1)

        return cls(
            counter=(column(indices), column(choices)),
            key=(column(seeds), column([seed >> 32 for seed in seeds])),
        )

    def take(self, rows: Sequence[int]) -> Self:
        """Those of some rows."""
        at = list(rows)
        (indices, choices), (low, high) = self.counter, self.key
        return replace(self, counter=(indices[at], choices[at]), key=(low[at], high[at]))

    def gumbel(self, ids: range) -> Tensor:
        """Standard Gumbel noise of consecutive token ids: [R, len(ids)] float64."""
        first = ids.start // 4
        blocks = torch.arange(first, -(-ids.stop // 4), device=self.key[0].device).unsqueeze(0)
        words = torch.stack(self._words(blocks), dim=-1).flatten(1)
        return _gumbel(words[:, ids.start - 4 * first :][:, : len(ids)])

    def gumbel_of(self, ids: Tensor) -> Tensor:
        """The same for any ids of each row: [R, C] int64 → [R, C] float64."""
        words = torch.stack(self._words(ids // 4), dim=-1)
        return _gumbel(words.gather(2, (ids % 4).unsqueeze(2)).squeeze(2))

    def _words(self, blocks: Tensor) -> tuple[Tensor, ...]:
        return philox((blocks, *self.counter, torch.zeros_like(blocks)), self.key)


def _gumbel(words: Tensor) -> Tensor:
    """Float64: a last-place difference between devices' logarithms all but never decides a draw."""
    uniform = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform))
