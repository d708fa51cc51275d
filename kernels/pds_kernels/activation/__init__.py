"""What a gated feed-forward block makes of its two halves.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs
tuning.py      how a row is cut for it

On CPUs it is the end of the product before it (linear/, grouped_gemm/).

gated = choose(geometry).make(geometry)
out = gated(gate_up)
"""

from pds_kernels.activation.dispatch import Kernel, choose
from pds_kernels.activation.plan import NUMBERS, Activation, Gated, Geometry
from pds_kernels.activation.reference import gated_activation

__all__ = [
    "NUMBERS",
    "Activation",
    "Gated",
    "Geometry",
    "Kernel",
    "choose",
    "gated_activation",
]
