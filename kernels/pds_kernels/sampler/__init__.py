"""The choice of tokens: greedy, a draw from a whole softmax, or one among the likeliest tokens.

plan.py        what a kernel is given
philox.py      each row's noise
order.py       scores and ids in one number, and which of the likeliest may be drawn
dispatch.py    the seam: the kernels there are, and which of them a process runs
reference.py   the definition, in plain torch
cpu.py         on CPUs: cpu.cpp, scores.h (order) and noise.h (Philox)
triton.py      on GPUs, without top_k and top_p
tuning.py      how rows are split there

gumbel_max = choose(geometry).make(geometry)
values, ids = gumbel_max(logits, rows)

selection = choose_selection(geometry).make(geometry)
values, ids = selection.draw(logits, rows, bounds)
"""

from pds_kernels.sampler.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.sampler.dispatch import Kernel, Selector, choose, choose_selection
from pds_kernels.sampler.order import nucleus, pack, unpack
from pds_kernels.sampler.philox import Draws
from pds_kernels.sampler.plan import Bounds, Geometry, GumbelMax, Penalties, Rows, Selection
from pds_kernels.sampler.reference import gumbel_max

__all__ = [
    "CPU_LIBRARY",
    "Bounds",
    "Draws",
    "Geometry",
    "GumbelMax",
    "Kernel",
    "Penalties",
    "Rows",
    "Selection",
    "Selector",
    "choose",
    "choose_selection",
    "gumbel_max",
    "nucleus",
    "pack",
    "unpack",
]
