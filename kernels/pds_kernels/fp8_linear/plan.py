"""What a kernel is given: what stays the same, and a weight with its scale.

FP8 is float8_e4m3fn: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pds_kernels.targets import Gpu

Block = tuple[int, int] | Literal["channel", "tensor"]
"""What has one scale: a block of (rows, columns), each row (an output channel), or all."""


class Fp8Weight(NamedTuple):
    """A weight and what its numbers are multiplied by."""

    weight: Tensor
    """[N, K] float8_e4m3fn."""
    scale: Tensor
    """float32, bfloat16 or float8_e8m0fnu. Blocks: [⌈N / rows⌉, ⌈K / columns⌉], where the last ones
    may be cut short; channel: [N, 1] or [N]; tensor: [1] or []."""
    block: Block


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs, of one kind of layer on this rank."""

    rows: int
    """N, of the weight."""
    columns: int
    """K."""
    block: Block
    dtype: torch.dtype
    """Of x and of the result."""
    device: torch.device
    quantised_activations: bool = False
    """Whether x is quantised too, each token in groups of 128 (DeepSeek-AI, "DeepSeek-V3 Technical
    Report", 2024), so that the product is one of FP8."""
    gpu: Gpu | None = None
    """What `device` is, or what it stands for where a plan is made; None: that is not known."""


_FIRST_WITH_FP8 = 89
"""Compute capability of Ada; Hopper and later ones have FP8, too."""


def has_fp8(gpu: Gpu | None) -> bool:
    """Whether tensor cores of `gpu` multiply FP8, as far as is known."""
    return gpu is None or gpu.arch >= _FIRST_WITH_FP8


Linear = Callable[[Tensor, Fp8Weight], Tensor]
"""(x, weight) → x · weightᵀ. x: [T, K]; returns [T, N] in x's dtype. T may be 0."""
