"""Attention over paged keys and values: what a step gives, and which kernel runs it.

    plan.py        what a kernel is given, beside the step's AttentionPlan
    dispatch.py    the seam: the kernels there are, and which of them a process runs
    reference.py   the definition, in plain torch
    triton.py      on GPUs
    cpu.py         on CPUs: pages are read where they lie (cpu.cpp, block.h)

A process chooses a kernel for each geometry once, prepares each step's plan once, and attends once
a layer:

    kernel = choose(geometry)
    prepare = kernel.make(geometry)
    attend = prepare(plan)                            # once a step
    out = attend(q, k, v, keys, values, sinks)        # once a layer
"""

from pds_kernels.paged_attention.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.paged_attention.cpu import OnCpu
from pds_kernels.paged_attention.dispatch import Kernel, choose
from pds_kernels.paged_attention.plan import Attend, Geometry, Prepare

__all__ = ["CPU_LIBRARY", "Attend", "Geometry", "Kernel", "OnCpu", "Prepare", "choose"]
