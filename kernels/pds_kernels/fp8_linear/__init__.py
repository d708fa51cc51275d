"""Linear layers whose weights are in FP8, with scales of blocks, channels or the whole.

plan.py        what a kernel is given
scaling.py     between FP8 and other dtypes
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs; tuning.py has its tiles

linear = choose(geometry).make(geometry)
out = linear(x, weight)
"""

from pds_kernels.fp8_linear.dispatch import Kernel, choose
from pds_kernels.fp8_linear.plan import Block, Fp8Weight, Geometry, Linear
from pds_kernels.fp8_linear.scaling import dequantise, quantise_activation

__all__ = [
    "Block",
    "Fp8Weight",
    "Geometry",
    "Kernel",
    "Linear",
    "choose",
    "dequantise",
    "quantise_activation",
]
