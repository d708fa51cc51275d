"""Weights in FP8: what they mean number by number, and both ways to multiply with them."""

from dataclasses import replace

import pytest
import torch
from pds_kernels.fp8_linear import (
    Block,
    Fp8Weight,
    Geometry,
    Kernel,
    dequantise,
    quantise_activation,
)
from pds_kernels.fp8_linear.dispatch import KERNELS
from serving_kernels import served
from torch import Tensor

FP8 = torch.float8_e4m3fn
GEOMETRY = Geometry(576, 200, (128, 128), torch.float32, torch.device("cpu"))
SCALES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)
BLOCKS: list[tuple[tuple[int, int], Block, tuple[int, ...]]] = [
    ((576, 200), (128, 128), (5, 2)),
    ((256, 384), (128, 128), (2, 3)),
    ((3, 300), (128, 128), (1, 3)),
    ((10, 7), (4, 3), (3, 3)),
    ((9, 64), (1, 32), (9, 2)),
    ((130, 20), "channel", (130, 1)),
    ((130, 20), "channel", (130,)),
    ((130, 20), "tensor", ()),
    ((130, 20), "tensor", (1,)),
]
"""Shape of the weight, block, shape of the scale."""


def geometry(device: torch.device) -> Geometry:
    return replace(GEOMETRY, device=device)


def quantised(
    shape: tuple[int, ...], block: Block, scales: tuple[int, ...], dtype: torch.dtype
) -> Fp8Weight:
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 50).clamp(-448, 448).to(FP8)
    scale = (torch.rand(scales) + 0.5) / 64
    return Fp8Weight(weight, scale.to(dtype), block)


def of_each(weight: Fp8Weight) -> Tensor:
    """[N, K] float32: the scale of each number."""
    scale, (rows, columns) = weight.scale.float(), weight.weight.shape
    row, column = torch.arange(rows).unsqueeze(1), torch.arange(columns).unsqueeze(0)
    match weight.block:
        case "tensor":
            return scale.flatten()[0 * row + 0 * column]
        case "channel":
            return scale.flatten()[row + 0 * column]
        case (high, wide):
            return scale[row // high, column // wide]
    raise ValueError(weight.block)


def moved(weight: Fp8Weight, device: str) -> Fp8Weight:
    return Fp8Weight(weight.weight.to(device), weight.scale.to(device), weight.block)


@pytest.mark.parametrize("stored", SCALES)
@pytest.mark.parametrize(("shape", "block", "scales"), BLOCKS)
def test_a_number_is_multiplied_by_the_scale_of_its_block(
    shape: tuple[int, int], block: Block, scales: tuple[int, ...], stored: torch.dtype
) -> None:
    weight = quantised(shape, block, scales, stored)
    exact = weight.weight.float() * of_each(weight)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantise(*weight, dtype), exact.to(dtype))


def test_the_experts_of_a_layer_may_stand_in_one_tensor() -> None:
    each = [quantised((10, 7), (4, 3), (3, 3), torch.float32) for _ in range(2)]
    each[1] = each[1]._replace(scale=each[1].scale * 2)
    stacked = [torch.stack([w[field] for w in each]) for field in (0, 1)]
    found = dequantise(stacked[0], stacked[1], (4, 3), torch.float32)
    assert torch.equal(found, torch.stack([dequantise(*w, torch.float32) for w in each]))


@pytest.mark.parametrize(
    ("block", "scales"),
    [
        ((128, 128), (1, 2)),
        ((128, 128), (2, 1)),
        ((128, 128), (2,)),
        ("channel", (20,)),
        ("channel", (1,)),
        ("tensor", (130,)),
        ("tensor", (130, 1)),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(block: Block, scales: tuple[int, ...]) -> None:
    weight = torch.zeros(130, 200).to(FP8)
    with pytest.raises(ValueError, match=r"does not fit a weight of shape \[130, 200\]"):
        dequantise(weight, torch.ones(scales), block, torch.float32)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(("shape", "block", "scales"), BLOCKS)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_linear_layer_is_the_product_with_what_was_stored(
    kernel: Kernel,
    device: str,
    shape: tuple[int, int],
    block: Block,
    scales: tuple[int, ...],
    tokens: int,
) -> None:
    weight = quantised(shape, block, scales, torch.float32)
    linear = kernel.make(Geometry(*shape, block, torch.float32, torch.device(device)))
    x = torch.randn(tokens, shape[1])
    out = linear(x.to(device), moved(weight, device)).cpu()
    expected = x.double() @ dequantise(*weight, torch.float32).double().t()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 128, 129, 300])
def test_each_group_of_a_token_has_its_own_scale(columns: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, columns) * torch.tensor([1e-6, 1.0, 1e6, 0.0]).unsqueeze(1)
    numbers, scales = quantise_activation(x)
    assert (numbers.dtype, scales.dtype) == (FP8, torch.float32)
    assert scales.shape == (4, -(-columns // 128))
    for group in range(scales.shape[1]):
        part = slice(group * 128, (group + 1) * 128)
        greatest = x[:, part].abs().amax(1)
        assert (numbers[:3, part].float().abs().amax(1) == 448).all()
        torch.testing.assert_close(scales[:3, group] * 448, greatest[:3])
        back = numbers[:, part].float() * scales[:, group, None]
        # three bits of mantissa: half a unit in the last place, or half the least number
        allowed = (x[:, part].abs() / 16).maximum(greatest.unsqueeze(1) * 2.0**-9 / 448 / 2)
        assert ((back - x[:, part]).abs() <= allowed * 1.001).all()


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(("shape", "block", "scales"), BLOCKS)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_quantised_activations_cost_no_more_than_fp8_has(
    kernel: Kernel,
    device: str,
    shape: tuple[int, int],
    block: Block,
    scales: tuple[int, ...],
    tokens: int,
) -> None:
    """Each product is off by a sixteenth at most, and errors of that kind cancel out."""
    weight = quantised(shape, block, scales, torch.float32)
    asked = Geometry(*shape, block, torch.float32, torch.device(device), True)
    x = torch.randn(tokens, shape[1])
    out = kernel.make(asked)(x.to(device), moved(weight, device)).cpu()
    whole = dequantise(*weight, torch.float32)
    exact = x @ whole.t()
    assert out.shape == exact.shape
    assert ((out - exact).abs() <= (x.abs() @ whole.abs().t()) / 15).all()
    if tokens:
        assert (out - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_quantised_activations_multiply_group_by_group(kernel: Kernel, device: str) -> None:
    """As a GPU does it: products of FP8 numbers, summed in a group, then scaled."""
    weight = quantised((576, 200), (128, 128), (5, 2), torch.float32)
    x = torch.randn(6, 200)
    linear = kernel.make(replace(geometry(torch.device(device)), quantised_activations=True))
    numbers, scales = quantise_activation(x)
    expected = torch.zeros(6, 576, dtype=torch.float64)
    for group in range(2):
        part = slice(group * 128, (group + 1) * 128)
        sums = numbers[:, part].double() @ weight.weight[:, part].double().t()
        of_rows = weight.scale[:, group].repeat_interleave(128)[:576]
        expected += sums * scales[:, group, None].double() * of_rows.double()
    out = linear(x.to(device), moved(weight, device)).cpu()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
