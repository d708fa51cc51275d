"""Linear layers of FP8 weights in plain torch: the definition."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_kernels.fp8_linear.plan import Fp8Weight, Geometry, Linear
from pds_kernels.fp8_linear.scaling import GROUP, dequantise, quantise_activation


def make(geometry: Geometry) -> Linear:
    """Nothing is kept from call to call."""
    return of_quantised if geometry.quantised_activations else of_exact


def of_exact(x: Tensor, weight: Fp8Weight) -> Tensor:
    """plan.Linear, where x stays as it is and the weight becomes what x is."""
    return F.linear(x, dequantise(*weight, x.dtype))


def of_quantised(x: Tensor, weight: Fp8Weight) -> Tensor:
    """plan.Linear, where x is quantised in groups: the products are those of FP8 numbers, and the
    sums are in float32."""
    numbers, scales = quantise_activation(x)
    rounded = numbers.float() * scales.repeat_interleave(GROUP, 1)[:, : x.shape[1]]
    return F.linear(rounded, dequantise(*weight, torch.float32)).to(x.dtype)
