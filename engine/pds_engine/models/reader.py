"""Reads a checkpoint's tensors in the dtype and on the device of a rank."""

import torch
from torch import Tensor

from pds_engine.models.checkpoint import Checkpoint


class Reader:
    """Tensors are rounded to `stored` and kept in `dtype`, which may be wider (loader)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    def read(self, name: str, *parts: range | None) -> Tensor:
        """Tensor `name`; `parts` are ranges of its dimensions, None and those left out whole.

        Raises:
            ConfigError: it holds what is no number in this dtype.
        """
        tensor = self._checkpoint.read(name, self._stored, *parts)
        return tensor.to(self._device, self._dtype).contiguous()

    def norm(
        self, name: str, *parts: range | None, offset: float = 0.0, wide: bool = False
    ) -> Tensor:
        """A norm's weights, or `parts` of them, with `offset` added; `wide`: in float32."""
        weights = self.read(name, *parts)
        if wide:
            weights = weights.float()
        return weights + offset if offset else weights

    def none(self) -> Tensor:
        """What a model has not: a tensor of no elements."""
        return torch.empty(0, dtype=self._dtype, device=self._device)
