"""A linear layer in plain torch: the definition."""

import torch.nn.functional as F
from torch import Tensor

from pds_kernels.activation import gated_activation
from pds_kernels.linear.plan import Geometry, Linear, check_whole


def make(geometry: Geometry) -> Linear:
    """Nothing is kept from call to call."""
    return Plain(geometry)


class Plain:
    """plan.Linear; weights stay as they are, but for their dtype."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def pack(self, weight: Tensor) -> Tensor:
        return weight.to(self._geometry.out_dtype).contiguous()

    def unpack(self, packed: Tensor, ids: Tensor) -> Tensor:
        check_whole(self._geometry)
        return F.embedding(ids, packed).to(self._geometry.dtype)

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        out = F.linear(x.to(packed.dtype), packed, bias)
        activation = self._geometry.activation
        return out if activation is None else gated_activation(out, activation)
