"""Rotary position embedding (Su et al., 2021), with Llama 3.1's stretched frequencies."""

import math

import torch
from torch import Tensor

from pds_engine.spec import RopeSpec


def frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: [head_dim / 2], float32."""
    # 1 / x, not a negative power: float32 angles of far positions show the last bit
    inverse = 1.0 / spec.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if spec.kind == "linear":
        return inverse / spec.factor
    if spec.kind == "llama3":
        return _llama3(inverse, spec)
    return inverse


def _llama3(inverse: Tensor, spec: RopeSpec) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / inverse
    turns = spec.original_max_position / wavelength
    keep = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    keep = keep.clamp(0, 1)
    return inverse * (keep + (1 - keep) / spec.factor)


def table(spec: RopeSpec, head_dim: int, length: int, device: torch.device) -> Tensor:
    """Cosines then sines of positions 0 … length-1: [length, head_dim], float32."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(spec, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


def rotate(x: Tensor, rows: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of each head.

    x: [T, heads, D]; rows: [T, D], the table's rows at the tokens' positions. Returns x's dtype.
    """
    cos, sin = rows.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
