"""From a layer's projection to what attention takes: positions turned, keys and values in pages.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs
cpu.py         on CPUs (cpu.cpp)
tuning.py      how many heads a program has there

rotate_and_write = choose(geometry).make(geometry)
q = rotate_and_write(qkv, rows, norm, keys, values, write_slots)
"""

from pds_kernels.rope.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.rope.cpu import OnCpu, turning
from pds_kernels.rope.dispatch import Kernel, choose
from pds_kernels.rope.plan import Geometry, RotateAndWrite
from pds_kernels.rope.reference import rotate

__all__ = [
    "CPU_LIBRARY",
    "Geometry",
    "Kernel",
    "OnCpu",
    "RotateAndWrite",
    "choose",
    "rotate",
    "turning",
]
