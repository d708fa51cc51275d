"""What a kernel is given: what stays the same as long as a process runs, and a layer's tensors.

What changes with each step is `pds_kernels.plan.AttentionPlan`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pds_kernels.plan import AttentionPlan


@dataclass(frozen=True, slots=True)
class Geometry:
    """What stays the same as long as a process runs. Heads are this rank's.

    Layers of one model may differ in it: each kind has a kernel of its own.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    """Of queries and of the result."""
    kv_dtype: torch.dtype
    """Of the pages."""
    device: torch.device
    scale: float | None = None
    """What scores are multiplied by; None: head_dim ** -0.5."""
    window: int | None = None
    """How many tokens a token sees, itself included and the latest ones; None: all before it
    (Beltagy et al., "Longformer", 2020)."""
    softcap: float | None = None
    """Scaled scores s become softcap · tanh(s / softcap), before the mask (Gemma Team, "Gemma 2",
    2024); None: they stay."""
    sinks: bool = False
    """Whether each head has a learned score that takes part in the softmax and adds nothing to the
    result (OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025)."""


class Attend(Protocol):
    """Attention of one layer."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None = None,
        /,
    ) -> Tensor:
        """Write k and v into their pages, then attend.

        q: [T, heads, D]; k, v: [T, kv_heads, D], or None of both where they are in their pages
        already (`rope` writes them); keys, values: the layer's pages, [pages, kv_heads,
        page_size, D], strided as kv.pool in the engine says; sinks: [heads], for a geometry with
        sinks and for no other. Returns [T, heads·D] in q's dtype, finite where the token is
        padding. Places in a page that no token of a request has filled may hold anything, NaN too:
        they must be kept out of the result, not multiplied by zero.

        Raises:
            ValueError: the geometry has sinks and none are given, or the other way round.
        """


Prepare = Callable[[AttentionPlan], Attend]
"""Whatever a kernel derives from a plan is derived here, once a step."""


def check(geometry: Geometry, sinks: Tensor | None) -> None:
    """As Attend raises."""
    if geometry.sinks != (sinks is not None):
        given = "missing" if sinks is None else "given"
        raise ValueError(f"geometry.sinks is {geometry.sinks}, and sinks are {given}")
