"""Root-mean-square normalisation (Zhang & Sennrich, 2019)."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension; the mean is taken in float32.

    x: [..., D]; weight: [D] or any shape that broadcasts with x. The product is rounded to x's
    dtype; with a weight of that dtype x / rms(x) is too, before it. Returns x's shape and dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return ((wide * scale).to(weight.dtype) * weight).to(x.dtype)
