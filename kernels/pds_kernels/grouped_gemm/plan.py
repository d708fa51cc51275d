"""What a kernel of experts is given: what stays the same, a layer's weights, a step's rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pds_kernels.activation import Activation


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Experts and columns are this rank's."""

    experts: int
    hidden: int
    columns: int
    """Of `gate` and of `up`."""
    activation: Activation
    dtype: torch.dtype
    """Of rows, weights and the result."""
    device: torch.device


class ExpertWeights(NamedTuple):
    """The experts of one layer: E experts, C columns."""

    gate_up: Tensor  # [E, 2C, hidden], gate's rows first
    down: Tensor  # [E, hidden, C]
    gate_up_bias: Tensor | None = None  # [E, 2C]
    down_bias: Tensor | None = None  # [E, hidden]


Feed = Callable[[Tensor, Tensor, ExpertWeights], Tensor]
"""(rows, counts, weights) → out: each expert on its own rows.

rows: [M, hidden], those of expert 0 first, then those of expert 1, …; counts: [E] int64, how many
each has. Returns [M, hidden] in the dtype of the rows. Rows past the last expert's belong to none
and give zeros, whatever they hold. An expert without rows costs nothing.
"""
