"""Attention over paged keys and values: what a step gives, and which kernel runs it.

    plan.py        what a kernel is given: AttentionPlan is in the terms that kernel libraries take
    dispatch.py    the seam: the kernels there are, and which of them a process runs
    reference.py   the definition, in plain torch

A process chooses its kernel once, prepares each step's plan once, and attends once a layer:

    kernel = choose(geometry)
    prepare = kernel.make(geometry)
    attend = prepare(plan)                     # once a step
    out = attend(q, k, v, keys, values)        # once a layer
"""

from pds_kernels.paged_attention.dispatch import Kernel, choose
from pds_kernels.paged_attention.plan import Attend, AttentionPlan, Geometry, Prepare

__all__ = ["Attend", "AttentionPlan", "Geometry", "Kernel", "Prepare", "choose"]
