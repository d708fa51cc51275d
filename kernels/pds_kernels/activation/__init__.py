"""What a gated feed-forward block makes of its two halves.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs
cpu.py         on CPUs (cpu.cpp)
tuning.py      how a row is cut for it

gated = choose(geometry).make(geometry)
out = gated(gate_up)
"""

from pds_kernels.activation.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.activation.cpu import OnCpu
from pds_kernels.activation.dispatch import Kernel, choose
from pds_kernels.activation.plan import Activation, Gated, Geometry
from pds_kernels.activation.reference import gated_activation

__all__ = [
    "CPU_LIBRARY",
    "Activation",
    "Gated",
    "Geometry",
    "Kernel",
    "OnCpu",
    "choose",
    "gated_activation",
]
