"""What a sampler is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pds_kernels.sampler.philox import Draws
from pds_kernels.upload import upload


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs."""

    columns: int
    """Logits of a row: this rank's share of the vocabulary, its padding included."""
    first: int
    """The token id of column 0."""
    device: torch.device


@dataclass(frozen=True, slots=True)
class Rows:
    """How each of R rows is chosen. None has top_k or top_p: these need the likeliest in order."""

    temperatures: Tensor
    """[R] float32; 0: greedy."""
    hot: tuple[int, ...]
    """Rows of a temperature above 0, on the host: nothing needs to be read back."""
    draws: Draws
    """Of all rows. Greedy ones do not use theirs."""
    least: Tensor | None = None
    """[R] float32, what a row's scores must reach to be drawn (min_p): -inf for none, and for
    greedy rows; None: for no row."""

    @classmethod
    def of(cls, temperatures: Sequence[float], draws: Draws, least: Tensor | None = None) -> Self:
        """On the device of `draws`."""
        return cls(
            upload(temperatures, torch.float32, draws.key[0].device),
            tuple(at for at, temperature in enumerate(temperatures) if temperature > 0),
            draws,
            least,
        )


GumbelMax = Callable[[Tensor, Rows], tuple[Tensor, Tensor]]
"""(logits [R, columns] float32, rows) → values [R] float64 and token ids [R] int64.

A greedy row's value is its greatest logit. A hot row's is the greatest of logit / temperature, in
float32, plus standard Gumbel noise in float64: its id is a draw from the softmax (Gumbel, 1954).
The lowest id wins ties. Ranks that split the vocabulary compare their values.

A value is not finite just where NaN or infinity is among the row's scores, or nothing is left of
them; its id then is any of the rank's. R may be 0. Rows of `logits` may lie apart.
"""
