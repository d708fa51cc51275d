"""Rotary position embedding (Su et al., 2021) with every way of stretching it that spec.py has.

Frequencies are computed in float32 by transformers' order of operations: at far positions their
last bit is seen in the angles.
"""

import math

import torch
from torch import Tensor

from pds_engine.spec import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    RopeSpec,
    YarnScaling,
)


def frequencies(spec: RopeSpec, length: int) -> Tensor:
    """Radians per position of each pair of dimensions: [dims / 2], float32.

    `length` is max_model_len: LongRoPE's factors depend on it.
    """
    # 1 / x, not a negative power, which is rounded otherwise
    periods = spec.theta ** (torch.arange(0, spec.dims, 2, dtype=torch.float32) / spec.dims)
    match spec.scaling:
        case LinearScaling(factor):
            return 1.0 / periods / factor
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / periods, scaling)
        case YarnScaling() as scaling:
            return _yarn(periods, scaling, spec)
        case LongScaling() as scaling:
            factors = scaling.long if scaling.is_long(length) else scaling.short
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * periods)
        case ProportionalScaling(pairs, factor):
            turning = torch.arange(len(periods)) < pairs
            return torch.where(turning, 1.0 / periods, 0.0) / factor
    return 1.0 / periods


def _llama3(fast: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Pairs with few turns are slowed by `factor`, those with many kept, others interpolated."""
    slow = fast / scaling.factor
    turns = scaling.original / (2 * math.pi / fast)
    keep = (turns - scaling.low) / (scaling.high - scaling.low)
    between = (1 - keep) * fast / scaling.factor + keep * fast
    return torch.where(turns < scaling.low, slow, torch.where(turns > scaling.high, fast, between))


def _yarn(periods: Tensor, scaling: YarnScaling, spec: RopeSpec) -> Tensor:
    """Slowed by `factor` from one dimension on, kept up to another, interpolated between them."""
    first, last = (_pair_of(turns, scaling, spec) for turns in (scaling.fast, scaling.slow))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.dims - 1)
    width = (last - first) or 0.001  # a step, not a division by zero
    ramp = ((torch.arange(len(periods), dtype=torch.float32) - first) / width).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _pair_of(turns: float, scaling: YarnScaling, spec: RopeSpec) -> float:
    """Which pair makes so many turns in the positions that the model was first trained on."""
    reach = math.log(scaling.original / (turns * 2 * math.pi))
    return spec.dims * reach / (2 * math.log(spec.theta))


def table(spec: RopeSpec, length: int, device: torch.device) -> Tensor:
    """Cosines then sines of positions 0 … length-1, for pds_kernels.rope: [length, dims], float32.

    `length` is max_model_len. Both are multiplied by the attention factor.
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(spec, length))
    both = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return (both * spec.attention_factor).to(device)


def by_halves(weight: Tensor, head_dim: int, first: int, dims: int) -> Tensor:
    """A projection's rows in the order in which pds_kernels.rope wants interleaved pairs.

    The pairs (2i, 2i + 1) of each head's dimensions `first` … `first + dims - 1` become the pairs
    (i, i + dims/2). Queries and keys that are both reordered have the same scores, so nothing needs
    to be reordered while the model runs.

    weight: [heads · head_dim, …], also a bias, or FP8 weights. Their block scales stay as they are
    where each reordered section lies within one block of rows: DeepSeek's sections have 64 rows and
    begin at multiples of 64, and its blocks have 128.
    """
    rows = torch.arange(len(weight), device=weight.device).view(-1, head_dim)
    section = rows[:, first : first + dims]
    pairs = section.reshape(len(rows), dims // 2, 2).transpose(1, 2).reshape(len(rows), dims)
    order = torch.cat((rows[:, :first], pairs, rows[:, first + dims :]), dim=1)
    return weight[order.flatten()]
