"""Each activation against the definition, on odd widths and strided rows."""

from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from ahead import Compile
from pds_kernels.activation import Activation, Geometry, Kernel, choose, gated_activation
from pds_kernels.activation.dispatch import KERNELS
from pds_kernels.activation.tuning import Tile, tile
from pds_kernels.launching import recording
from serving_kernels import served
from torch import Tensor

KINDS = get_args(Activation)


def geometry(device: torch.device, dtype: torch.dtype = torch.float32) -> Geometry:
    return Geometry(96, "silu", dtype, device)


LOWER = [
    pytest.param(*each.values, dtype, marks=each.marks, id=f"{each.id}-{dtype}")
    for dtype in (torch.bfloat16, torch.float16)
    for each in served(KERNELS, partial(geometry, dtype=dtype))
]
"""Kernels, devices and the dtypes below float32 that they serve."""


def ends(device: str) -> Tensor:
    """[T, 2]: every pair of values that are near, far and no numbers."""
    gates = torch.tensor([0.0, -2.5, 7.5, 30.0, -300.0, float("inf"), float("nan")])
    ups = torch.tensor([0.0, -0.5, 7.5, -7.5, float("inf"), float("-inf"), float("nan")])
    return torch.cartesian_prod(gates, ups).to(device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 96), (2, 128), (2, 1001), (0, 64)])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel, device: str, rows: int, columns: int, kind: Activation
) -> None:
    torch.manual_seed(0)
    wide = torch.randn(rows, 2 * columns + 5, device=device) * 6
    wide[:, 2 * columns :] = float("nan")  # what lies beside the row must not be read
    gate_up = wide[:, : 2 * columns]
    gated = kernel.make(Geometry(columns, kind, torch.float32, torch.device(device)))
    found = gated(gate_up)
    assert found.shape == (rows, columns)
    # for large negative gates the definition of gelu, 1 + tanh, has no digits left
    torch.testing.assert_close(found, gated_activation(gate_up, kind), rtol=2e-6, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of 0 · infinity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_great_numbers_and_none(kernel: Kernel, device: str, kind: Activation) -> None:
    """What is no number in the definition is none in a kernel, and the other way round."""
    gate_up = ends(device)
    found = kernel.make(Geometry(1, kind, torch.float32, torch.device(device)))(gate_up)
    expected = gated_activation(gate_up, kind)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kernel", "device", "dtype"), LOWER)
def test_lower_dtypes_differ_by_their_rounding(
    kernel: Kernel, device: str, dtype: torch.dtype, kind: Activation
) -> None:
    torch.manual_seed(1)
    gate_up = (torch.randn(4, 64, device=device) * 3).to(dtype)
    found = kernel.make(Geometry(32, kind, dtype, torch.device(device)))(gate_up)
    assert found.dtype == dtype
    exact = gated_activation(gate_up.double(), kind)
    ulps = 4 * torch.finfo(dtype).eps  # four operations that the definition rounds after
    torch.testing.assert_close(found.double(), exact, rtol=ulps, atol=ulps)


def test_the_definition_is_the_papers() -> None:
    gate, up = torch.randn(2, 5, 9).double().unbind()
    both = torch.cat((gate, up), 1)
    torch.testing.assert_close(gated_activation(both, "silu"), gate * gate.sigmoid() * up)
    torch.testing.assert_close(
        gated_activation(both, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up
    )


@pytest.mark.parametrize(
    ("columns", "dtype", "expected"),
    [
        (1, torch.bfloat16, Tile(256, 1)),
        (768, torch.bfloat16, Tile(1024, 4)),  # an expert of Qwen3-30B-A3B
        (14336, torch.bfloat16, Tile(1024, 4)),
        (14336, torch.float32, Tile(512, 4)),
    ],
)
def test_a_thread_has_a_vector(columns: int, dtype: torch.dtype, expected: Tile) -> None:
    assert tile(columns, dtype) == expected


@pytest.mark.parametrize(
    ("columns", "kind"), [(14336, "silu"), (18432, "gelu_tanh"), (2880, "clamped")]
)
def test_compiles_for_sm_90(hopper: Compile, columns: int, kind: Activation) -> None:
    meta = torch.device("meta")
    wanted = Geometry(columns, kind, torch.bfloat16, meta)
    gate_up = torch.empty(3, 2 * columns, dtype=wanted.dtype, device=meta)
    with recording() as launches:
        out = choose(wanted).make(wanted)(gate_up)
    assert out.shape == (3, columns)
    assert [each.stack for each in hopper(launches)] == [0]
