"""What a sampler is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

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
    """How each of R rows is chosen, but for `Bounds`."""

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


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which tokens of R rows may be drawn. Greedy rows are not bounded."""

    top_k: Tensor
    """[R] int64: the k likeliest; 0: any."""
    top_p: Tensor
    """[R] float32: the fewest likeliest ones, of what the others leave, whose chances sum to p
    (Holtzman et al., 2020); the likeliest always may."""
    log_min_p: Tensor
    """[R] float32: scores this far below the best one, or less. -inf: any."""

    @classmethod
    def of(
        cls,
        top_k: Sequence[int],
        top_p: Sequence[float],
        min_p: Sequence[float],
        device: torch.device,
    ) -> Self:
        def floats(values: Sequence[float]) -> Tensor:
            return upload(values, torch.float32, device)

        return cls(
            upload(top_k, torch.int64, device),
            floats(top_p),
            floats(min_p).log(),
        )


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of P rows among R: what their logits lose by the tokens so far."""

    rows: Tensor
    """[P] int64: which of the R."""
    slots: Tensor
    """[P] int64: their places in the tables."""
    prompted: Tensor
    """[slots, ids] bool: whether a prompt has a token. Rows may lie apart."""
    counts: Tensor
    """[slots, ids] int32: how often an output has it. Likewise."""
    repetition: Tensor
    """[P] float32, for tokens of prompt and output (Keskar et al., 2019)."""
    presence: Tensor
    """[P] float32, for tokens of the output, as OpenAI has it."""
    frequency: Tensor
    """[P] float32, for each time that the output has it."""


class Selection(Protocol):
    """The likeliest tokens, and draws from among them. Rows of `logits` may lie apart.

    A score is logit / temperature in float32. A score and its id in one number are `packed`: int64
    that rises with the score, then falls with the id, so that the lowest id wins ties. NaN is above
    all.
    """

    @property
    def at_once(self) -> bool:
        """`draw` takes less time than `likeliest`, `mass` and a draw from what they give."""

    def likeliest(self, logits: Tensor, temperatures: Tensor, most: int, /) -> Tensor:
        """logits [R, columns] float32, temperatures [R] float32 above 0 → packed, greatest first:
        [R, most], or as many as there are columns. most: at least 1."""

    def mass(self, logits: Tensor, temperatures: Tensor, best: Tensor, least: Tensor, /) -> Tensor:
        """The sum of exp(score - best) over the scores that are at least `least`, both [R] float32:
        [R] float64."""

    def log_sum(self, logits: Tensor, /) -> Tensor:
        """log(sum(exp(logits))) of each row, in float64: [R]."""

    def draw(self, logits: Tensor, rows: Rows, bounds: Bounds, /) -> tuple[Tensor, Tensor]:
        """`GumbelMax` among the tokens that `bounds` leave; `rows` have no least. Columns are the
        whole vocabulary, from id 0. Chances are summed in float64 and compared in float32."""

    def penalise(self, logits: Tensor, penalties: Penalties, /) -> Callable[[], None]:
        """Change the logits of some rows in place. What it returns puts them back, before the next
        call."""
