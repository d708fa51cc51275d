"""What a kernel is given: what stays the same as long as a process runs, and a layer's tensors."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Heads are this rank's.

    Layers of one model may differ in it: each kind has a kernel of its own.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    """How many of a head's first dimensions are rotated; even."""
    page_size: int
    dtype: torch.dtype
    """Of the projection and of the queries."""
    kv_dtype: torch.dtype
    """Of the pages."""
    device: torch.device
    norm_eps: float | None = None
    """Each head of queries and keys is normalised by itself before it is rotated (Qwen3, Gemma 3);
    None: none is."""


class RotateAndWrite(Protocol):
    """Rotary positions (Su et al., "RoFormer", 2021), and this step's part of the KV cache."""

    def __call__(
        self,
        qkv: Tensor,
        rows: Tensor,
        norm: Tensor | None,
        keys: Tensor,
        values: Tensor,
        write_slots: Tensor,
        /,
    ) -> Tensor:
        """Normalise and rotate queries and keys, write keys and values into their pages.

        qkv: [T, (heads + 2·kv_heads)·D], queries first, then keys, then values; its rows may lie
        apart. rows: [T, rotated] float32, cosines and then sines at the tokens' positions; pair i
        is (i, i + rotated/2). norm: [heads + kv_heads, D], or None for a geometry without norms; in
        float32 where the product is to be taken in it. keys, values: the layer's pages, [pages,
        kv_heads, page_size, D], strided as kv.pool in the engine says. write_slots: [T] int64, of
        AttentionPlan. Several tokens of padding may have one slot: any of them is written.

        Returns the queries, [T, heads, D]. T may be 0. Nothing else of the pages is touched.

        Raises:
            ValueError: the geometry has norms and none are given, or the other way round.
        """


def check(geometry: Geometry, norm: Tensor | None) -> None:
    """As RotateAndWrite raises."""
    if (geometry.norm_eps is None) != (norm is None):
        given = "missing" if norm is None else "given"
        raise ValueError(f"geometry.norm_eps is {geometry.norm_eps}, and norms are {given}")
