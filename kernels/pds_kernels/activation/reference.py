"""The gated activation in plain torch: the definition."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.activation.plan import ALPHA, LIMIT, Activation, Gated, Geometry


def make(geometry: Geometry) -> Gated:
    """Nothing is kept from call to call."""
    return partial(gated_activation, activation=geometry.activation)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    """[…, 2C], gate's columns first → […, C]."""
    gate, up = gate_up.chunk(2, dim=-1)
    match activation:
        case "silu":
            return F.silu(gate) * up
        case "gelu_tanh":
            return F.gelu(gate, approximate="tanh") * up
        case "clamped":
            gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
            return (up + 1) * (gate * torch.sigmoid(gate * ALPHA))
