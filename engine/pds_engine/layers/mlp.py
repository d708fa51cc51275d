"""The gated feed-forward block (SwiGLU; Shazeer, 2020)."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down · (silu(gate · x) * (up · x)).

    x: [T, hidden]; gate_up: [2·columns, hidden], gate's rows first; down: [hidden, columns].
    With tensor parallelism the result is this shard's part of a sum.
    """
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)
