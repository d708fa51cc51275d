"""Reads a checkpoint's tensors in the dtype and on the device of a rank."""

from typing import Protocol

import torch
from torch import Tensor


class Tensors(Protocol):
    """What a checkpoint is to its reader; models.checkpoint.Checkpoint says more."""

    def __contains__(self, name: str) -> bool:
        """Whether it has a tensor of that name."""

    def read(self, name: str, dtype: torch.dtype, *parts: range | None) -> Tensor:
        """Tensor `name`, or ranges of its dimensions."""


class Reader:
    """Tensors are rounded to `stored` and kept in `dtype`, which may be wider (loader).

    The weights of norms have `norm_offset` added; with `norm_wide` they are kept in float32.
    """

    def __init__(
        self,
        checkpoint: Tensors,
        stored: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
        *,
        norm_offset: float = 0.0,
        norm_wide: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._dtype = dtype
        self._device = device
        self._norm_offset = norm_offset
        self._norm_wide = norm_wide

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    def read(self, name: str, *parts: range | None) -> Tensor:
        """Tensor `name`; `parts` are ranges of its dimensions, None and those left out whole.

        Raises:
            ConfigError: it holds what is no number in this dtype.
        """
        tensor = self._checkpoint.read(name, self._stored, *parts)
        return tensor.to(self._device, self._dtype).contiguous()

    def exact(self, name: str) -> Tensor:
        """Tensor `name` in float32, whatever the model's dtype is."""
        return self._checkpoint.read(name, torch.float32).to(self._device)

    def norm(self, name: str, *parts: range | None) -> Tensor:
        """A norm's weights, or `parts` of them, as they are multiplied with."""
        weights = self.read(name, *parts)
        if self._norm_wide:
            weights = weights.float()
        return weights + self._norm_offset if self._norm_offset else weights

    def empty(self, *shape: int) -> Tensor:
        """A tensor to be filled by parts."""
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def none(self) -> Tensor:
        """What a model has not: a tensor of no elements."""
        return torch.empty(0, dtype=self._dtype, device=self._device)
