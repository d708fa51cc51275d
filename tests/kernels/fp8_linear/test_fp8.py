"""Weights in FP8: what they mean number by number, and both ways to multiply with them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from ahead import Compile, keys
from pds_kernels.fp8 import Block, Fp8Weight, dequantise, quantise_activation
from pds_kernels.fp8_linear import Geometry, Kernel, choose
from pds_kernels.fp8_linear.dispatch import KERNELS
from pds_kernels.fp8_linear.reference import make as definition
from pds_kernels.fp8_linear.tuning import pieces, tile, tiles
from pds_kernels.launching import Launch, recording
from poison import poisoned
from serving_kernels import served
from torch import Tensor

FP8 = torch.float8_e4m3fn
META = torch.device("meta")
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


def served_blocks() -> list[object]:
    """(kernel, device, shape, block, scales): what each kernel serves of BLOCKS."""
    found = []
    for shape, block, scales in BLOCKS:
        named = f"{shape}-{block}-{scales}"
        for each in served(KERNELS, partial(Geometry, *shape, block, torch.float32)):
            marks, name = each.marks, f"{each.id}-{named}"
            found.append(pytest.param(*each.values, shape, block, scales, marks=marks, id=name))
    return found


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
@pytest.mark.parametrize(("kernel", "device", "shape", "block", "scales"), served_blocks())
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
@pytest.mark.parametrize(("kernel", "device", "shape", "block", "scales"), served_blocks())
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


@pytest.mark.parametrize(("tokens", "stored"), list(zip((15, 17, 65), SCALES, strict=True)))
@pytest.mark.parametrize("quantises", [False, True])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_tiles_may_end_anywhere(
    kernel: Kernel, device: str, tokens: int, quantises: bool, stored: torch.dtype
) -> None:
    """What lies beside x and beside the weight is not read: a rank may have a part of them."""
    torch.manual_seed(0)
    whole = quantised((130, 272), (128, 128), (2, 3), stored)
    part = Fp8Weight(whole.weight[:, :144], whole.scale[:, :2], whole.block)
    whole.weight.view(torch.uint8)[:, 144:] = 0x7F  # NaN
    beside = moved(whole, device)
    mine = Fp8Weight(beside.weight[:, :144], beside.scale[:, :2], whole.block)
    wide = torch.full((tokens, 300), float("nan"), device=device)
    wide[:, :144] = torch.randn(tokens, 144)
    asked = Geometry(130, 144, (128, 128), torch.float32, torch.device(device), quantises)
    with poisoned():
        out = kernel.make(asked)(wide[:, :144], mine)
    expected = definition(asked)(wide[:, :144].cpu(), part)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1024, 1300, 2100])
@pytest.mark.parametrize("quantises", [False, True])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_columns_may_be_cut_into_pieces(
    kernel: Kernel, device: str, quantises: bool, columns: int
) -> None:
    asked = Geometry(3, columns, (128, 128), torch.float32, torch.device(device), quantises)
    assert pieces(asked, tile(asked, 2)) > 1
    weight = quantised((3, columns), (128, 128), (1, -(-columns // 128)), torch.float32)
    x = torch.randn(2, columns)
    with poisoned():
        out = kernel.make(asked)(x.to(device), moved(weight, device))
    torch.testing.assert_close(out.cpu(), definition(asked)(x, weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_token_gone_wrong_harms_no_other(kernel: Kernel, device: str) -> None:
    weight = quantised((576, 200), (128, 128), (5, 2), torch.float32)
    x = torch.randn(3, 200)
    asked = replace(geometry(torch.device(device)), quantised_activations=True)
    healthy = kernel.make(asked)(x.to(device), moved(weight, device))
    x[1, 7] = float("nan")
    out = kernel.make(asked)(x.to(device), moved(weight, device))
    assert torch.equal(out[::2], healthy[::2])


@pytest.mark.parametrize(("tokens", "columns"), [(0, 128), (1, 1), (3, 129), (17, 256)])
@pytest.mark.parametrize(
    ("kernel", "device"), served([each for each in KERNELS if each.name == "triton"], geometry)
)
def test_triton_rounds_as_the_definition(
    kernel: Kernel, device: str, tokens: int, columns: int
) -> None:
    from pds_kernels.fp8.quantising import quantise

    torch.manual_seed(0)
    x = torch.randn(tokens, columns) * torch.exp2(torch.randint(-14, 3, (tokens, columns)))
    x[:, ::5] = 0
    numbers, scales = quantise(x.to(device))
    expected, expected_scales = quantise_activation(x)
    assert torch.equal(numbers.cpu().float(), expected.float())
    assert torch.equal(scales.cpu(), expected_scales)
    assert scales.stride() == (1, max(-(-tokens // 4) * 4, 1))  # as TMA reads them


@pytest.mark.parametrize("quantises", [False, True])
@pytest.mark.parametrize("tokens", [1, 17, 65, 300])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry, "cuda"))
def test_in_bfloat16_on_a_device(kernel: Kernel, device: str, tokens: int, quantises: bool) -> None:
    """The interpreter multiplies bfloat16 wrongly."""
    torch.manual_seed(0)
    weight = moved(quantised((2112, 1024), (128, 128), (17, 8), torch.float32), device)
    x = torch.randn(tokens, 1024, device=device).bfloat16()
    asked = Geometry(2112, 1024, (128, 128), x.dtype, x.device, quantises)
    expected = definition(replace(asked, dtype=torch.float32))(x.float(), weight)
    out = kernel.make(asked)(x, weight).float()
    assert (out - expected).norm() < 5e-3 * expected.norm()


REAL = {
    "deepseek-v3": Geometry(2112, 7168, (128, 128), torch.bfloat16, META, True),
    "deepseek-v3, x as it is": Geometry(2112, 7168, (128, 128), torch.bfloat16, META),
    "a scale for each channel": Geometry(4096, 4096, "channel", torch.bfloat16, META, True),
}


def launched(asked: Geometry, tokens: int) -> list[Launch]:
    x = torch.empty(tokens, asked.columns, dtype=asked.dtype, device=META)
    numbers = torch.empty(asked.rows, asked.columns, dtype=FP8, device=META)
    scales = (asked.rows, 1)
    if not isinstance(asked.block, str):
        scales = (-(-asked.rows // asked.block[0]), -(-asked.columns // asked.block[1]))
    scale = torch.empty(scales, dtype=torch.float32, device=META)
    with recording() as launches:
        choose(asked).make(asked)(x, Fp8Weight(numbers, scale, asked.block))
    return launches


def test_compiles_for_sm_90(hopper: Compile) -> None:
    launches = [each for asked in REAL.values() for each in launched(asked, 1)]
    assert {each.stack for each in hopper(launches)} == {0}


@pytest.mark.parametrize("model", REAL)
def test_a_plan_has_the_variants_for_all_numbers_of_tokens(model: str) -> None:
    asked = REAL[model]
    assert {tile(asked, tokens) for tokens in range(1, 2000)} == set(tiles(asked))
    made = [each for each in launched(asked, 1) if each.function == "multiply"]
    assert [dict(each.constants)["block_t"] for each in made] == [16, 64, 128]


def test_the_number_of_tokens_makes_no_variant() -> None:
    launches = [each for tokens in (1, 16, 100) for each in launched(REAL["deepseek-v3"], tokens)]
    found = [each["source"] + each["variant"] for each in keys(launches)[:-1]]
    once = len(found) // 3
    assert found[:once] == found[once : 2 * once] == found[2 * once :]
