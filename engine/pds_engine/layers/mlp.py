"""The gated feed-forward block (Shazeer, "GLU Variants Improve Transformer", 2020)."""

from pds_kernels.activation import Gated
from torch import Tensor

from pds_engine.layers.linear import Matrix, PackedMatrix, linear


def gated(activate: Gated, x: Tensor, gate_up: Matrix, down: Matrix) -> Tensor:
    """down · activate(gate · x, up · x).

    x: [T, hidden]; gate_up: [2·columns, hidden], gate's rows first; down: [hidden, columns].
    With tensor parallelism the result is this shard's part of a sum.
    """
    made = linear(x, gate_up)
    return linear(made if isinstance(gate_up, PackedMatrix) else activate(made), down)
