"""Experts in plain torch, one after the other: the definition.

It reads the counts back from the device, which a kernel need not do.
"""

from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.activation import gated_activation
from pds_kernels.fp8 import Fp8Weight
from pds_kernels.fp8.scaling import multiply_quantised
from pds_kernels.grouped_gemm.plan import ExpertWeights, Feed, Geometry, Stack


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
        gate_up = _product(rows[begin:end], expert, weights.gate_up, weights.gate_up_bias)
        gated = gated_activation(gate_up, geometry.activation)
        out[begin:end] = _product(gated, expert, weights.down, weights.down_bias)
    return out


def _product(x: Tensor, expert: int, weights: Stack, biases: Tensor | None) -> Tensor:
    bias = None if biases is None else biases[expert]
    if not isinstance(weights, Fp8Weight):
        return F.linear(x, weights[expert], bias)
    one = Fp8Weight(weights.weight[expert], weights.scale[expert], weights.block)
    out = multiply_quantised(x, one)
    return out if bias is None else out + bias
