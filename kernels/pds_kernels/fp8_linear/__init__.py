"""Linear layers whose weights are in FP8, with scales of blocks, channels or the whole.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
deep_gemm.py   on Hopper, by DeepGEMM
triton.py      on GPUs; tuning.py has its tiles

linear = choose(geometry).make(geometry)
out = linear(x, weight)
"""

from pds_kernels.fp8_linear.dispatch import Kernel, choose, reading
from pds_kernels.fp8_linear.plan import Geometry, Linear

__all__ = ["Geometry", "Kernel", "Linear", "choose", "reading"]
