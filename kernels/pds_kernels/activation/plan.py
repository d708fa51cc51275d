"""What an activation is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh", "clamped"]
"""What a block makes of `gate` and `up`:

silu, gelu_tanh: act(gate) · up (Shazeer, "GLU Variants Improve Transformer", 2020; gelu by its
approximation with tanh: Hendrycks & Gimpel, 2016).
clamped: gate up to 7, up within ±7; (up + 1) · gate · sigmoid(1.702 · gate), as gpt-oss has it.
"""
NUMBERS: dict[Activation | None, int] = {
    None: -1,
    **{name: at for at, name in enumerate(get_args(Activation))},
}
"""As kernels in C++ are told which one (cpu/finish.h)."""
ALPHA, LIMIT = 1.702, 7.0
"""Of the clamped activation: the sigmoid's slope, and what both halves are clamped to."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs."""

    columns: int
    """Of `gate` and of `up`, this rank's."""
    activation: Activation
    dtype: torch.dtype
    device: torch.device


Gated = Callable[[Tensor], Tensor]
"""gate_up [T, 2·columns], gate's columns first → [T, columns], in the same dtype.

Rows may lie apart; the elements of a row lie side by side. T may be 0. NaN in either half gives NaN
in its place. In dtypes below float32 the definition rounds after each operation; a kernel may keep
float32 to the end and round once.
"""
