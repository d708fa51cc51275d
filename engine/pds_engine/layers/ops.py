"""What stands between a layer's matrix products: the kernels that serve a device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from pds_kernels import activation, rms_norm
from torch import Tensor

from pds_engine.layers.shapes import Shape


class Ops(NamedTuple):
    """The operations of a layer."""

    norm: Callable[..., tuple[Tensor, Tensor]]
    """(x, weight, residual): pds_kernels.rms_norm.Norm."""
    activate: activation.Gated
    """Of the dense block."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The hidden states that layers pass on."""

    hidden: int
    dtype: torch.dtype
    norm_dtype: torch.dtype
    """Of the weights of norms."""
    device: torch.device


def plain(shape: Shape) -> Ops:
    """Of torch's own operations."""
    return Ops(
        norm=partial(rms_norm.norm, shape.norm_eps),
        activate=partial(activation.gated_activation, activation=shape.activation),
    )


def kernels(shape: Shape, stream: Stream) -> Ops:
    """By the best kernels that there are for `stream`."""
    gated = activation.Geometry(shape.columns, shape.activation, stream.dtype, stream.device)
    return Ops(
        norm=norm_kernel(shape.norm_eps, stream),
        activate=activation.choose(gated).make(gated),
    )


def norm_kernel(eps: float, stream: Stream) -> rms_norm.Norm:
    """The best normalisation of the hidden states of `stream`."""
    geometry = rms_norm.Geometry(stream.hidden, stream.dtype, stream.norm_dtype, eps, stream.device)
    return rms_norm.choose(geometry).make(geometry)
