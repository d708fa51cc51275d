"""Experts in plain torch, one after the other: the definition.

It reads the counts back from the device, which a kernel need not do.
"""

from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.activation import gated_activation
from pds_kernels.grouped_gemm.plan import ExpertWeights, Feed, Geometry


def make(geometry: Geometry) -> Feed:
    """Nothing is kept from call to call."""
    return partial(feed, geometry)


def feed(geometry: Geometry, rows: Tensor, counts: Tensor, weights: ExpertWeights) -> Tensor:
    """plan.Feed, once `geometry` is given."""
    starts = [0, *accumulate(counts.tolist())]
    out = torch.zeros_like(rows)
    for expert, (begin, end) in enumerate(pairwise(starts)):
        if begin == end:
            continue
        gate_up = F.linear(
            rows[begin:end], weights.gate_up[expert], _of(expert, weights.gate_up_bias)
        )
        gated = gated_activation(gate_up, geometry.activation)
        out[begin:end] = F.linear(gated, weights.down[expert], _of(expert, weights.down_bias))
    return out


def _of(expert: int, biases: Tensor | None) -> Tensor | None:
    return None if biases is None else biases[expert]
