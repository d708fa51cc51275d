"""A weight in FP8 with its scale, and the GPUs that multiply such.

FP8 is float8_e4m3fn: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from typing import Literal, NamedTuple

from torch import Tensor

from pds_kernels.targets import Gpu

Block = tuple[int, int] | Literal["channel", "tensor"]
"""What has one scale: a block of (rows, columns), each row (an output channel), or all."""
_FIRST_WITH_FP8 = 89
"""Compute capability of Ada; Hopper and later ones have FP8, too."""


class Fp8Weight(NamedTuple):
    """A weight and what its numbers are multiplied by."""

    weight: Tensor
    """[N, K] float8_e4m3fn; of experts [E, N, K]."""
    scale: Tensor
    """float32, bfloat16 or float8_e8m0fnu. Blocks: [⌈N / rows⌉, ⌈K / columns⌉], where the last ones
    may be cut short; channel: [N, 1] or [N]; tensor: [1] or []. Of experts with E before."""
    block: Block


def has_fp8(gpu: Gpu | None) -> bool:
    """Whether tensor cores of `gpu` multiply FP8, as far as is known."""
    return gpu is None or gpu.arch >= _FIRST_WITH_FP8
