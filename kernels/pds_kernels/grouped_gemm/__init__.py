"""The experts of a mixture, each on the tokens that chose it: GEMMs of groups of rows.

    plan.py        what a kernel is given
    permute.py     tokens to rows that are sorted by expert, and back
    dispatch.py    the seam: the kernels there are, and which of them a process runs
    reference.py   the definition, in plain torch
    triton.py      on GPUs; tuning.py has its tiles
    cpu.py         on CPUs: weights in panels (cpu.cpp)

    feed = choose(geometry).make(geometry)
    out = experts(feed, x, ids, weights, of_layer)

Expert parallelism calls the parts: `permute` on what it has received, `feed`, `unpermute`.
"""

from pds_kernels.grouped_gemm.cpu import LIBRARY as CPU_LIBRARY
from pds_kernels.grouped_gemm.cpu import Beside, OnCpu, Room
from pds_kernels.grouped_gemm.dispatch import Kernel, choose, packing, reading
from pds_kernels.grouped_gemm.permute import Permuted, experts, permute, unpermute
from pds_kernels.grouped_gemm.plan import ExpertWeights, Feed, Geometry, Packed, PackingFeed, Stack

__all__ = [
    "CPU_LIBRARY",
    "Beside",
    "ExpertWeights",
    "Feed",
    "Geometry",
    "Kernel",
    "OnCpu",
    "Packed",
    "PackingFeed",
    "Permuted",
    "Room",
    "Stack",
    "choose",
    "experts",
    "packing",
    "permute",
    "reading",
    "unpermute",
]
