"""The gated feed-forward block (Shazeer, "GLU Variants Improve Transformer", 2020)."""

from pds_kernels.activation import gated_activation
from torch import Tensor

from pds_engine.layers.linear import Matrix, linear
from pds_engine.spec import Activation


def gated(x: Tensor, gate_up: Matrix, down: Matrix, activation: Activation = "silu") -> Tensor:
    """down · activation(gate · x, up · x).

    x: [T, hidden]; gate_up: [2·columns, hidden], gate's rows first; down: [hidden, columns].
    With tensor parallelism the result is this shard's part of a sum.
    """
    return linear(gated_activation(linear(x, gate_up), activation), down)
