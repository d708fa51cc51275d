"""What a normalisation is given."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs."""

    hidden: int
    dtype: torch.dtype
    """Of the residual stream and the result."""
    weight_dtype: torch.dtype
    """float32 where a model's checkpoints ask for it (Gemma); the product is taken in it."""
    eps: float
    device: torch.device


class Norm(Protocol):
    """Root-mean-square normalisation (Zhang & Sennrich, 2019), by itself or after a sum."""

    def __call__(
        self, x: Tensor, weight: Tensor, residual: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """x and normed x: with a residual, x + residual and that sum, normed.

        x, residual: [T, hidden]; weight: [hidden]. The sum is rounded to x's dtype; the mean is
        taken in float32. T may be 0. Returns tensors of x's shape and dtype; without a residual the
        first is x itself.
        """
