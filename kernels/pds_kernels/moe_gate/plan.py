"""What a gate is given: the rule of a model, and the scores of a step's tokens.

Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
2017.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Score = Literal["softmax", "sigmoid", "softmax of chosen"]
GroupScore = Literal["max", "top2"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The rule by which a model's tokens choose their experts.

    | model | rule |
    | --- | --- |
    | Mixtral | softmax, renormalise |
    | Qwen2-MoE, Qwen3-MoE | softmax; renormalise where `norm_topk_prob` says so |
    | gpt-oss | softmax of chosen |
    | DeepSeek-V2 | softmax, scaling; groups by their max |
    | DeepSeek-V3 | sigmoid, renormalise, scaling, a correction; groups by their top2 |
    """

    experts: int
    top_k: int
    device: torch.device
    score: Score = "softmax"
    """softmax: over all experts. sigmoid: each expert by itself. softmax of chosen: experts are
    chosen by their logits, and the softmax is over the chosen ones alone."""
    renormalise: bool = False
    """Whether a token's weights are divided by their sum."""
    scaling: float = 1.0
    """What the weights are multiplied by at last."""
    groups: int = 1
    """Experts stand in so many groups of equal size; a token chooses within `top_groups` of them
    (DeepSeek-AI, "DeepSeek-V2", 2024). 1: there are no groups."""
    top_groups: int = 1
    group_score: GroupScore = "max"
    """What a group counts: its best expert, or the sum of its two best (DeepSeek-AI, "DeepSeek-V3
    Technical Report", 2024)."""


class Gate(Protocol):
    """The rule, ready to run."""

    def __call__(
        self, logits: Tensor, correction: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Weights [T, top_k] float32 and ids [T, top_k] int64, the best expert first.

        logits: [T, experts], computed in float32 whatever they come in; correction: [experts]
        float32, added to the scores for choosing alone: it does not change what a chosen expert
        counts (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
        2024). Of equal scores the expert with the lower id wins, and of equal groups the lower one:
        the same on every device and every rank. A NaN gives ids in range all the same.
        """
