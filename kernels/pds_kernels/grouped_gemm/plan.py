"""What a kernel of experts is given: what stays the same, a layer's weights, a step's rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pds_kernels.activation import Activation
from pds_kernels.fp8 import Fp8Weight
from pds_kernels.targets import Gpu

Stack = Tensor | Fp8Weight
"""[E, N, K]: a matrix of each expert. [E, numbers]: packed (`PackingFeed`)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Experts and columns are this rank's."""

    experts: int
    hidden: int
    columns: int
    """Of `gate` and of `up`."""
    activation: Activation
    dtype: torch.dtype
    """Of rows, the result, and weights that are plain."""
    device: torch.device
    block: tuple[int, int] | None = None
    """What of the weights has one scale, (rows, columns): they are in FP8, and rows are quantised
    before each product, in groups of 128 (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024). None:
    they are plain."""
    gpu: Gpu | None = None
    """What `device` is, or what it stands for where a plan is made; None: that is not known."""
    stored: torch.dtype | None = None
    """Of weights that are packed, where the processor computes in a wider one; None: `dtype`."""

    @property
    def packed_dtype(self) -> torch.dtype:
        return self.stored or self.dtype


class ExpertWeights(NamedTuple):
    """The experts of one layer: E experts, C columns. Both matrices are plain, or packed, or in FP8
    with float32 scales of blocks."""

    gate_up: Stack  # [E, 2C, hidden], gate's rows first
    down: Stack  # [E, hidden, C]
    gate_up_bias: Tensor | None = None  # [E, 2C]
    down_bias: Tensor | None = None  # [E, hidden]

    @property
    def experts(self) -> int:
        return len(numbers(self.down))


def numbers(stack: Stack) -> Tensor:
    """[E, N, K]: what has a scale beside it, if in FP8."""
    return stack.weight if isinstance(stack, Fp8Weight) else stack


Feed = Callable[[Tensor, Tensor, ExpertWeights], Tensor]
"""(rows, counts, weights) → out: each expert on its own rows.

rows: [M, hidden], those of expert 0 first, then those of expert 1, …; counts: [E] int64, how many
each has. Returns [M, hidden] in the dtype of the rows. Rows past the last expert's belong to none
and give zeros, whatever they hold. An expert without rows costs nothing.
"""


class Packed(NamedTuple):
    """Experts in the order in which a kernel reads them; of no other use."""

    gate_up: Tensor  # [E, numbers]
    down: Tensor  # [E, numbers]


class PackingFeed(Protocol):
    """A Feed that packs plain weights once, at load. It takes plain ones, too, and packs them for
    each call."""

    def empty(self, experts: int) -> Packed:
        """Room for so many."""

    def pack(self, gate_up: Tensor, down: Tensor, packed: Packed, place: int) -> None:
        """Fill a place of `packed` with an expert: gate_up [2C, hidden], down [hidden, C]."""

    def __call__(self, rows: Tensor, counts: Tensor, weights: ExpertWeights, /) -> Tensor:
        """As `Feed`."""
