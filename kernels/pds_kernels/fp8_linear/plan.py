"""What a kernel is given: what stays the same, and a weight with its scale (pds_kernels.fp8)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pds_kernels.fp8 import Block, Fp8Weight
from pds_kernels.targets import Gpu


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


Linear = Callable[[Tensor, Fp8Weight], Tensor]
"""(x, weight) → x · weightᵀ. x: [T, K]; returns [T, N] in x's dtype. T may be 0."""
