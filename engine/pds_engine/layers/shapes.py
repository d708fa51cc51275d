"""What the pieces of a layer need to know apart from tensors. Heads are this rank's."""

from dataclasses import dataclass
from typing import Literal

from pds_engine.spec import Activation, Norms


@dataclass(frozen=True, slots=True)
class HeadsShape:
    """Of grouped-query attention."""

    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    """Of a head's dimensions, by rotary positions."""
    qk_norm: Literal["none", "head", "whole"]
    qkv_bias: bool
    norm_eps: float
    shards: int = 1
    """Ranks over which the heads are split."""
    kv_replicas: int = 1
    """How many of these have the same KV heads."""


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Of multi-head latent attention."""

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm_eps: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a layer. Layers of one shape share their pieces."""

    attention: HeadsShape | LatentShape
    norms: Norms
    norm_eps: float
    activation: Activation
    columns: int
    """Of the gated block, this rank's; 0: the feed-forward block is a mixture of experts."""
    out_bias: bool = False
