"""Greedy choice, and draws from a whole softmax.

plan.py        what a kernel is given
philox.py      each row's noise
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
triton.py      on GPUs
tuning.py      how rows are split there

gumbel_max = choose(geometry).make(geometry)
values, ids = gumbel_max(logits, rows)
"""

from pds_kernels.sampler.dispatch import Kernel, choose
from pds_kernels.sampler.philox import Draws
from pds_kernels.sampler.plan import Geometry, GumbelMax, Rows
from pds_kernels.sampler.reference import gumbel_max

__all__ = ["Draws", "Geometry", "GumbelMax", "Kernel", "Rows", "choose", "gumbel_max"]
