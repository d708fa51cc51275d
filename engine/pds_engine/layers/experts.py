"""What a mixture of experts computes beside its experts: the router, and the block for all."""

import torch
import torch.nn.functional as F
from pds_kernels.activation import Gated
from torch import Tensor

from pds_engine.layers.linear import Matrix
from pds_engine.layers.mlp import gated


def router_logits(x: Tensor, router: Tensor, bias: Tensor) -> Tensor:
    """How well each expert suits each token: [T, E], in the router's dtype.

    x: [T, hidden]; router: [E, hidden], in float32 where the model computes it so (DeepSeek), else
    in the dtype of x; bias: [E], or no elements.
    """
    return F.linear(x.to(router.dtype), router, bias if bias.numel() else None)


def shared_block(
    activate: Gated, x: Tensor, gate_up: Matrix, down: Matrix, own_gate: Tensor
) -> Tensor:
    """The gated block that every token passes: [T, hidden].

    x: [T, hidden]; gate_up, down: as of mlp.gated; own_gate: [1, hidden], whose sigmoid the result
    is multiplied by (Qwen2-MoE), or no elements. With tensor parallelism the result is this shard's
    part of a sum.
    """
    fed = gated(activate, x, gate_up, down)
    return torch.sigmoid(F.linear(x, own_gate)) * fed if own_gate.numel() else fed
