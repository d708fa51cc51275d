"""The gated feed-forward block (Shazeer, "GLU Variants Improve Transformer", 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_engine.spec import Activation

OAI_ALPHA, OAI_LIMIT = 1.702, 7.0
"""Of gpt-oss's activation: the sigmoid's slope, and what both halves are clamped to."""


def activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """What the block's second projection takes, of the halves of the first one's result."""
    if activation == "silu":
        return F.silu(gate) * up
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=OAI_LIMIT), up.clamp(-OAI_LIMIT, OAI_LIMIT)
    return (up + 1) * gate * torch.sigmoid(OAI_ALPHA * gate)


def gated(x: Tensor, gate_up: Tensor, down: Tensor, activation: Activation = "silu") -> Tensor:
    """down · activate(gate · x, up · x).

    x: [T, hidden]; gate_up: [2·columns, hidden], gate's rows first; down: [hidden, columns].
    With tensor parallelism the result is this shard's part of a sum.
    """
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(activate(gate, up, activation), down)
