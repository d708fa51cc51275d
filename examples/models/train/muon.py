"""Muon in float32, matrices of one shape at a time.

torch.optim.Muon orthogonalises in bfloat16, one matrix after the other, which on a CPU without
bfloat16 instructions takes longer than the model itself.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (https://kellerjordan.github.io/posts/muon)."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(mean, group["momentum"])
                wide = update.T if update.shape[0] > update.shape[1] else update
                by_shape.setdefault(tuple(wide.shape), []).append((weight, wide))
            for alike in by_shape.values():
                updates = orthogonal(torch.stack([update for _, update in alike]))
                for (weight, _), wide in zip(alike, updates, strict=True):
                    rows, columns = weight.shape
                    update = wide.T if rows > columns else wide
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(x: Tensor) -> Tensor:
    """Nearly orthogonal x [count, rows, columns], rows ≤ columns: five Newton-Schulz steps."""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x
