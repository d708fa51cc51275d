"""Linear layers whose weights are in FP8, with scales of blocks, channels or the whole.

plan.py        what a kernel is given
scaling.py     between FP8 and other dtypes
quantising.py  of activations, on GPUs
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
deep_gemm.py   on Hopper, by DeepGEMM
triton.py      on GPUs; tuning.py has its tiles

linear = choose(geometry).make(geometry)
out = linear(x, weight)
"""

from pds_kernels.fp8_linear.dispatch import Kernel, choose, reading
from pds_kernels.fp8_linear.plan import Block, Fp8Weight, Geometry, Linear, has_fp8
from pds_kernels.fp8_linear.scaling import dequantise, quantise_activation

__all__ = [
    "Block",
    "Fp8Weight",
    "Geometry",
    "Kernel",
    "Linear",
    "choose",
    "dequantise",
    "has_fp8",
    "quantise_activation",
    "reading",
]
