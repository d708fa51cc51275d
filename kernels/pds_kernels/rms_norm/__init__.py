"""Root-mean-square normalisation, with the sum of the residual stream before it.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs
cpu.py         on CPUs (cpu.cpp)

norm = choose(geometry).make(geometry)
x, normed = norm(x, weight, residual)
"""

from pds_kernels.rms_norm.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.rms_norm.cpu import OnCpu
from pds_kernels.rms_norm.dispatch import Kernel, choose
from pds_kernels.rms_norm.plan import Geometry, Norm
from pds_kernels.rms_norm.reference import norm, rms_norm

__all__ = ["CPU_LIBRARY", "Geometry", "Kernel", "Norm", "OnCpu", "choose", "norm", "rms_norm"]
