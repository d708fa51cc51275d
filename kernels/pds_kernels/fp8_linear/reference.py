"""Linear layers of FP8 weights in plain torch: the definition."""

import torch.nn.functional as F
from torch import Tensor

from pds_kernels.fp8 import Fp8Weight, dequantise
from pds_kernels.fp8.scaling import multiply_quantised
from pds_kernels.fp8_linear.plan import Geometry, Linear


def make(geometry: Geometry) -> Linear:
    """Nothing is kept from call to call."""
    return multiply_quantised if geometry.quantised_activations else of_exact


def of_exact(x: Tensor, weight: Fp8Weight) -> Tensor:
    """plan.Linear, where x stays as it is and the weight becomes what x is."""
    return F.linear(x, dequantise(*weight, x.dtype))
