"""Refuses tokens whose experts transformers chooses by a hair: others may be chosen here."""

from typing import Any

import torch

NEAR = 1e-5
"""Logits or scores of experts, or of groups, that are nearer may be ordered otherwise."""


def watch(model: torch.nn.Module) -> None:
    """Refuse them in every router of the model, from now on."""
    for module in model.modules():
        kind = type(module).__name__.lower()
        if kind.endswith("topkrouter"):
            module.register_forward_hook(_grouped if kind.startswith("deepseek") else _plain)


def _plain(router: torch.nn.Module, _: Any, output: Any) -> None:
    """The last chosen expert and the best of the others."""
    _clear(output[0], router.top_k)


def _grouped(router: torch.nn.Module, _: Any, output: Any) -> None:
    """DeepSeek's: the same of groups, then of the experts of those that were chosen."""
    logits = output[0]
    correction = getattr(router, "e_score_correction_bias", None)
    # a softmax keeps the order of logits
    scores = logits if correction is None else logits.sigmoid() + correction
    if getattr(router, "topk_method", "") != "greedy" and router.num_group > 1:
        members = scores.unflatten(-1, (router.num_group, -1))
        best = members.topk(1 if correction is None else 2, -1).values.sum(-1)
        if router.topk_group < router.num_group:
            _clear(best, router.topk_group)
        chosen = best.topk(router.topk_group, -1).indices
        scores = members[torch.arange(len(members)).unsqueeze(1), chosen].flatten(1)
    _clear(scores, router.top_k)


def _clear(values: torch.Tensor, count: int) -> None:
    if count < values.shape[-1]:
        best = values.topk(count + 1, -1).values
        assert (best[:, -2] - best[:, -1]).min() > NEAR, "a router's choice is nearly tied"
