"""What a linear layer is given."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pds_kernels.activation import Activation


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs."""

    rows: int
    """Of the weight: output columns."""
    columns: int
    dtype: torch.dtype
    """Of tokens."""
    weight_dtype: torch.dtype
    """The same, what the weight is stored in where the processor computes in float32, or float32
    where the result is to be (a router that a model wants so)."""
    device: torch.device
    activation: Activation | None = None
    """The weight is a gated block's first: gate's rows, then as many of up's. What is made of their
    results is the result."""

    @property
    def made(self) -> int:
        """Columns of the result."""
        return self.rows if self.activation is None else self.rows // 2

    @property
    def out_dtype(self) -> torch.dtype:
        """Of bias and result: the wider one."""
        return torch.promote_types(self.dtype, self.weight_dtype)


class Linear(Protocol):
    """x · weightᵀ + bias (Rumelhart et al., 1986), summed in float32, and the activation of it;
    rounded once."""

    def pack(self, weight: Tensor, /) -> Tensor:
        """[rows, columns] in `weight_dtype`, whose rows may lie apart → the same numbers in the
        order in which the kernel reads them; of no other use."""

    def unpack(self, packed: Tensor, ids: Tensor, /) -> Tensor:
        """The rows `ids` ([T] int64, each in range) of what `pack` was given, in `dtype`: an
        embedding that is the head's weight needs no second copy. Returns [T, columns].

        Raises:
            ValueError: the geometry has an activation.
        """

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """x: [T, columns], rows may lie apart; bias: [rows] in `out_dtype`. T may be 0. Returns [T,
        made]. With a kernel for CPUs a token's numbers do not depend on the other tokens."""


def check_whole(geometry: Geometry) -> None:
    """As Linear.unpack raises."""
    if geometry.activation is not None:
        raise ValueError("only a weight without an activation gives its rows back")
