"""The gate of a mixture of experts: which experts see a token, and what each of them counts.

plan.py        what a kernel is given
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
cpu.py         on CPUs (cpu.cpp)
triton.py      on GPUs; tuning.py says how its work is cut

gate = choose(geometry).make(geometry)
weights, ids = gate(logits, correction)
"""

from pds_kernels.moe_gate.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.moe_gate.cpu import OnCpu
from pds_kernels.moe_gate.dispatch import Kernel, choose
from pds_kernels.moe_gate.plan import Gate, Geometry, GroupScore, Score

__all__ = ["CPU_LIBRARY", "Gate", "Geometry", "GroupScore", "Kernel", "OnCpu", "Score", "choose"]
