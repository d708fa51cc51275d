"""Each linear layer against float64, on odd shapes and strided rows."""

from typing import get_args

import pytest
import torch
from pds_kernels.activation import Activation, gated_activation
from pds_kernels.linear import Geometry, Kernel
from pds_kernels.linear.dispatch import KERNELS
from serving_kernels import served

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16), (BF16, F32)]
SHAPES = [
    (1, 1, 1),
    (1, 512, 64),
    (3, 65, 33),
    (7, 40, 130),
    (13, 100, 70),
    (130, 96, 51),
    (0, 8, 8),
]
"""Tokens, rows and columns: around vectors, panels, tiles and blocks."""


def geometry(
    device: torch.device,
    rows: int = 8,
    columns: int = 8,
    dtypes: tuple[torch.dtype, ...] = (F32, F32),
) -> Geometry:
    return Geometry(rows, columns, *dtypes, device)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_float64(
    kernel: Kernel,
    device: str,
    tokens: int,
    rows: int,
    columns: int,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    torch.manual_seed(0)
    linear = kernel.make(geometry(torch.device(device), rows, columns, dtypes))
    wide = torch.randn(tokens, 2 * columns, device=device).to(dtypes[0])
    wide[:, columns:] = float("nan")  # what lies beside a row must not be read
    x, weight = wide[:, :columns], torch.randn(rows, columns, device=device).to(dtypes[1])
    out_dtype = torch.promote_types(*dtypes)
    bias = torch.randn(rows, device=device).to(out_dtype)
    packed = linear.pack(weight)
    expected = x.double() @ weight.double().T
    rtol, atol = (8e-3, 1e-2) if out_dtype == BF16 else (1e-5, 2e-5)
    for given, wanted in ((None, expected), (bias, expected + bias.double())):
        out = linear(x, packed, given)
        torch.testing.assert_close(out.double(), wanted, rtol=rtol, atol=atol)
        assert out.dtype == out_dtype


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(("tokens", "made", "columns"), [(1, 1, 3), (5, 33, 64), (60, 40, 130)])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_gated_block_against_float64(
    kernel: Kernel,
    device: str,
    tokens: int,
    made: int,
    columns: int,
    activation: Activation,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, columns, device=device).to(dtypes[0])
    wide = torch.randn(2 * made, columns + 3, device=device) / columns**0.5
    weight = wide.to(dtypes[1])[:, :columns]
    out_dtype = torch.promote_types(*dtypes)
    bias = torch.randn(2 * made, device=device).to(out_dtype)
    on = torch.device(device)
    linear = kernel.make(Geometry(2 * made, columns, *dtypes, on, activation))
    packed = linear.pack(weight)
    sums = x.double() @ weight.double().T
    rtol, atol = (4e-2, 4e-2) if out_dtype == BF16 else (1e-5, 2e-5)
    for given, of in ((None, sums), (bias, sums + bias.double())):
        out, wanted = linear(x, packed, given), gated_activation(of, activation)
        assert out.shape == (tokens, made) and out.dtype == out_dtype
        torch.testing.assert_close(out.double(), wanted, rtol=rtol, atol=atol)
    with pytest.raises(ValueError, match="without an activation"):
        linear.unpack(packed, torch.tensor([0], device=device))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_great_numbers_and_none_through_a_gated_block(
    kernel: Kernel, device: str, activation: Activation
) -> None:
    """Weights of one column are what the activation is given."""
    gates = torch.tensor([0.0, -2.5, 7.5, 30.0, -300.0, float("inf"), float("nan")])
    ups = torch.tensor([0.0, -0.5, 7.5, -7.5, float("inf"), float("-inf"), float("nan")])
    both = torch.cartesian_prod(gates, ups).T.to(device)
    on = torch.device(device)
    linear = kernel.make(Geometry(both.numel(), 1, F32, F32, on, activation))
    out = linear(torch.ones(1, 1, device=device), linear.pack(both.reshape(-1, 1)))
    wanted = gated_activation(both.reshape(1, -1), activation)
    torch.testing.assert_close(out, wanted, rtol=2e-6, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_unpacks_rows(kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...]) -> None:
    linear = kernel.make(geometry(torch.device(device), 70, 33, dtypes))
    weight = torch.randn(70, 33, device=device).to(dtypes[1])
    ids = torch.tensor([69, 0, 31, 32, 33, 0], device=device)
    torch.testing.assert_close(
        linear.unpack(linear.pack(weight), ids), weight[ids].to(dtypes[0]), rtol=0, atol=0
    )


@pytest.mark.parametrize("ids", [[-1], [0, 70], [1 << 40]])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry, "cpu"))
def test_a_row_that_there_is_not_is_refused(kernel: Kernel, device: str, ids: list[int]) -> None:
    linear = kernel.make(geometry(torch.device(device), 70, 33))
    packed = linear.pack(torch.randn(70, 33))
    with pytest.raises(IndexError):
        linear.unpack(packed, torch.tensor(ids))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "device"),
    [each for each in served(KERNELS, geometry, "cpu") if "ref" not in each.id],
)
def test_a_token_does_not_depend_on_its_batch(
    kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    torch.manual_seed(0)
    linear = kernel.make(geometry(torch.device(device), 300, 64, dtypes))
    packed = linear.pack(torch.randn(300, 64).to(dtypes[1]))
    x = torch.randn(100, 64).to(dtypes[0])
    whole = linear(x, packed)
    for count in (1, 2, 5, 12, 13, 48, 60):
        torch.testing.assert_close(linear(x[:count], packed), whole[:count], rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_nan_and_infinity_stay(kernel: Kernel, device: str) -> None:
    linear = kernel.make(geometry(torch.device(device), 40, 16))
    x = torch.ones(3, 16, device=device)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    out = linear(x, linear.pack(torch.ones(40, 16, device=device)))
    assert out[0].eq(16).all() and out[1].isnan().all() and out[2].isinf().all()


@pytest.mark.parametrize(
    ("kernel", "device"),
    served(KERNELS, lambda device: geometry(device, dtypes=(BF16, BF16)), "cpu"),
)
def test_ties_are_rounded_to_even(kernel: Kernel, device: str) -> None:
    """Every number of a wide range of bfloat16, and half of its last place."""
    bits = torch.arange(27 << 7, 227 << 7, dtype=torch.int32)
    numbers = (bits << 16).view(torch.float32)
    halves = ((bits >> 7) - 8 << 23).view(torch.float32)
    weight = torch.stack([numbers, halves], 1)
    weight = torch.cat([weight, -weight])
    expected = weight.sum(1).bfloat16()
    linear = kernel.make(Geometry(len(weight), 2, BF16, BF16, torch.device(device)))
    out = linear(torch.ones(1, 2, dtype=BF16), linear.pack(weight.bfloat16()))
    assert torch.equal(out[0], expected)
