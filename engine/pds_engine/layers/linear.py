"""Linear layers, of weights in torch's own form, in the order of a kernel, or in FP8."""

from dataclasses import dataclass

import torch.nn.functional as F
from pds_kernels import fp8_linear
from pds_kernels.fp8 import Fp8Weight
from pds_kernels.linear import Linear
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A weight in FP8, and the kernel that multiplies by it."""

    stored: Fp8Weight
    multiply: fp8_linear.Linear


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight in the order in which its kernel reads it."""

    numbers: Tensor
    kernel: Linear
    """Of a gated block's first weight it has the block's activation."""


Matrix = Tensor | PackedMatrix | Fp8Matrix
"""[N, K]."""


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias. x: [T, K]; bias: [N]; returns [T, N]."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if isinstance(weight, PackedMatrix):
        return weight.kernel(x, weight.numbers, bias)
    out = weight.multiply(x, weight.stored)
    return out if bias is None else out + bias
