"""Linear layers of plain weights, which a kernel may keep in an order of its own.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
cpu.py         on CPUs: weights in panels (cpu.cpp)

kernel = choose(geometry).make(geometry)
packed = kernel.pack(weight)        once, at load
out = kernel(x, packed, bias)
"""

from pds_kernels.linear.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.linear.cpu import OnCpu
from pds_kernels.linear.dispatch import Kernel, choose
from pds_kernels.linear.plan import Geometry, Linear

__all__ = ["CPU_LIBRARY", "Geometry", "Kernel", "Linear", "OnCpu", "choose"]
