"""Reads a checkpoint's tensors in the dtype and on the device of a rank."""

import logging
from typing import Protocol

import torch
from pds_kernels import fp8_linear, grouped_gemm, linear, mla, on_triton
from pds_kernels.activation import Activation
from pds_kernels.fp8 import Fp8Weight, has_fp8
from pds_kernels.targets import Gpu
from torch import Tensor

from pds_engine.layers.linear import Fp8Matrix, Matrix, PackedMatrix
from pds_engine.models.dequantized import Fp8

logger = logging.getLogger("pds.models")


class Tensors(Protocol):
    """What a checkpoint is to its reader; models.checkpoint.Checkpoint says more."""

    def __contains__(self, name: str) -> bool:
        """Whether it has a tensor of that name."""

    def read(self, name: str, dtype: torch.dtype, *parts: range | None) -> Tensor:
        """Tensor `name`, or ranges of its dimensions."""

    def has_fp8(self, name: str) -> bool:
        """Whether it is stored in FP8, with scales of blocks."""

    def read_fp8(self, name: str, *parts: range | None) -> Fp8 | None:
        """As `read`, but as it is stored; None: not in FP8, or `parts` cut through its blocks."""


class Reader:
    """Tensors are rounded to `stored` and kept in `dtype`, which may be wider (loader).

    The weights of norms have `norm_offset` added; with `norm_wide` they are kept in float32. `gpu`
    is what the device is, or what it stands for where a plan is made.
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
        gpu: Gpu | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._dtype = dtype
        self._device = device
        self._norm_offset = norm_offset
        self._norm_wide = norm_wide
        self._gpu = gpu
        self._keeps = on_triton.runs_on(device) and has_fp8(gpu)
        self._made_plain: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    def read(self, name: str, *parts: range | None) -> Tensor:
        """Tensor `name`; `parts` are ranges of its dimensions, None and those left out whole.

        Raises:
            ConfigError: it holds what is no number in this dtype.
        """
        tensor = self._checkpoint.read(name, self._stored, *parts)
        return tensor.to(self._device, self._dtype).contiguous()

    def fp8(self, name: str, *parts: range | None) -> Fp8Weight | None:
        """Tensor `name` as it is stored, with scales in float32.

        None: this device does not multiply FP8, it is not stored in FP8 with scales of blocks, or
        `parts` cut through these.
        """
        if not self._keeps or not self._checkpoint.has_fp8(name):
            return None
        found = self._checkpoint.read_fp8(name, *parts)
        if found is None:
            return None
        scale = found.scale.to(self._device, torch.float32).contiguous()
        return Fp8Weight(found.weight.to(self._device).contiguous(), scale, found.block)

    def kept(self, weight: Fp8Weight) -> Fp8Matrix | None:
        """`weight` with the kernel that multiplies by it; None: no kernel reads it as it is stored.

        Such a kernel quantises activations, too.
        """
        rows, columns = weight.weight.shape
        geometry = fp8_linear.Geometry(
            rows=rows,
            columns=columns,
            block=weight.block,
            dtype=self._dtype,
            device=self._device,
            quantised_activations=True,
            gpu=self._gpu,
        )
        kernel = fp8_linear.reading(geometry)
        return None if kernel is None else Fp8Matrix(weight, kernel.make(geometry))

    def reading_experts(
        self, gate_up: Fp8Weight, down: Fp8Weight, activation: Activation
    ) -> grouped_gemm.Feed | None:
        """The kernel that computes with experts of these matrices ([e, N, K]); None: no kernel
        reads them as they are stored. It quantises activations, too."""
        block = gate_up.block
        if isinstance(block, str) or down.block != block:
            return None
        experts, hidden, columns = down.weight.shape
        geometry = grouped_gemm.Geometry(
            experts=experts,
            hidden=hidden,
            columns=columns,
            activation=activation,
            dtype=self._dtype,
            device=self._device,
            block=block,
            gpu=self._gpu,
        )
        kernel = grouped_gemm.reading(geometry)
        return None if kernel is None else kernel.make(geometry)

    def packing_experts(
        self, experts: int, hidden: int, columns: int, activation: Activation
    ) -> grouped_gemm.PackingFeed | None:
        """The kernel that computes with so many experts and packs their weights, in the dtype in
        which they are stored; None: it reads plain ones."""
        return grouped_gemm.packing(
            grouped_gemm.Geometry(
                experts=experts,
                hidden=hidden,
                columns=columns,
                activation=activation,
                dtype=self._dtype,
                device=self._device,
                stored=self._stored,
            )
        )

    def plain(self, name: str, *parts: range | None) -> Tensor:
        """The weight of a linear layer, for `packed`: in the dtype in which it is stored. One that
        would be kept in FP8 if it could is named by `report`."""
        if self._keeps and self._checkpoint.has_fp8(name):
            self._made_plain.append(name)
        return self._checkpoint.read(name, self._stored, *parts).to(self._device)

    def packed(
        self, weight: Tensor, *, wide: bool = False, activation: Activation | None = None
    ) -> Matrix:
        """A weight [N, K] of `plain` as the best kernel reads it; `wide`: in float32; `activation`:
        of the gated block whose first weight it is."""
        (rows, columns), stored = weight.shape, torch.float32 if wide else self._stored
        weight = weight.to(stored)
        geometry = linear.Geometry(rows, columns, self._dtype, stored, self._device, activation)
        kernel = linear.choose(geometry)
        if kernel.name == "reference":
            return weight.to(torch.float32 if wide else self._dtype).contiguous()
        made = kernel.make(geometry)
        return PackedMatrix(made.pack(weight.contiguous()), made)

    def packed_heads(self, uk: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """What makes keys [H, N, R] and values [H, V, R] of a latent, as the best kernel reads
        them."""
        return mla.packed(mla.Heads(self._dtype, self._stored, self._device), uk, uv)

    def report(self) -> None:
        """Log which weights in FP8 were not kept so."""
        if self._made_plain:
            first, *others = self._made_plain
            logger.warning(
                "%s and %d more weights are stored in FP8 and kept in %s: this rank's part of them "
                "cuts through blocks, or no kernel reads such blocks",
                first,
                len(others),
                self._dtype,
            )

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
