"""Multi-head latent attention: pages hold one latent a token, from which all heads' keys and values
come.

    plan.py        what a kernel is given, beside the step's AttentionPlan
    dispatch.py    the seam: the kernels there are, and which of them a process runs
    reference.py   the definition, in plain torch
    cpu.py         on CPUs (cpu.cpp, and in tasks.h what a thread does)

    w_uk, w_uv = packed(heads, w_uk, w_uv)            # once, at load
    prepare = choose(geometry).make(geometry)
    attend = prepare(plan)                            # once a step
    out = attend(q, latent, pages, w_uk, w_uv)        # once a layer
"""

from pds_kernels.mla.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.mla.cpu import OnCpu
from pds_kernels.mla.dispatch import Kernel, choose, packed
from pds_kernels.mla.plan import Attend, Geometry, Heads, Prepare

__all__ = [
    "CPU_LIBRARY",
    "Attend",
    "Geometry",
    "Heads",
    "Kernel",
    "OnCpu",
    "Prepare",
    "choose",
    "packed",
]
