"""Normalisation in plain torch: the definition."""

from functools import partial

import torch
from torch import Tensor

from pds_kernels.rms_norm.plan import Geometry, Norm


def make(geometry: Geometry) -> Norm:
    """Nothing is kept from call to call."""
    return partial(norm, geometry.eps)


def norm(
    eps: float, x: Tensor, weight: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """plan.Norm, once the geometry's `eps` is given."""
    total = x if residual is None else x + residual
    return total, rms_norm(total, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension; the mean is taken in float32.

    x: [..., D]; weight: [D] or any shape that broadcasts with x. The product is rounded to x's
    dtype; with a weight of that dtype x / rms(x) is too, before it. Returns x's shape and dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return ((wide * scale).to(weight.dtype) * weight).to(x.dtype)
