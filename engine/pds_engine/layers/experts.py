"""What a mixture of experts computes beside its experts: the router, and the block for all."""

import torch
from pds_kernels.activation import Gated
from torch import Tensor

from pds_engine.layers.linear import Matrix, linear
from pds_engine.layers.mlp import gated


def router_logits(x: Tensor, router: Matrix, bias: Tensor) -> Tensor:
    """How well each expert suits each token: [T, E], in the router's dtype.

    x: [T, hidden]; router: [E, hidden], in float32 where the model computes it so (DeepSeek), else
    in the dtype of x; bias: [E], or no elements.
    """
    read = x.to(router.dtype) if isinstance(router, Tensor) else x
    return linear(read, router, bias if bias.numel() else None)


def shared_block(
    activate: Gated, x: Tensor, gate_up: Matrix, down: Matrix, own_gate: Matrix | None
) -> Tensor:
    """The gated block that every token passes: [T, hidden].

    x: [T, hidden]; gate_up, down: as of mlp.gated; own_gate: [1, hidden], whose sigmoid the result
    is multiplied by (Qwen2-MoE). With tensor parallelism the result is this shard's
    part of a sum.
    """
    fed = gated(activate, x, gate_up, down)
    return fed if own_gate is None else torch.sigmoid(linear(x, own_gate)) * fed
