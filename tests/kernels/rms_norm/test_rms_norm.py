"""Each normalisation against the definition, on odd shapes and strided rows."""

import pytest
import torch
from ahead import Compile
from pds_kernels.launching import recording
from pds_kernels.rms_norm import Geometry, Kernel, choose
from pds_kernels.rms_norm.dispatch import KERNELS
from pds_kernels.rms_norm.reference import norm
from serving_kernels import served


def geometry(device: torch.device, hidden: int = 96) -> Geometry:
    return Geometry(hidden, torch.float32, torch.float32, 1e-6, device)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (3, 96), (5, 128), (2, 1000), (0, 64)])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel, device: str, rows: int, hidden: int, adds: bool
) -> None:
    torch.manual_seed(0)
    wanted = geometry(torch.device(device), hidden)
    wide = torch.randn(rows, 2 * hidden, device=device)
    wide[:, hidden:] = float("nan")  # what lies beside the row must not be read
    x, weight = wide[:, :hidden], torch.randn(hidden, device=device)
    residual = torch.randn(rows, hidden, device=device) if adds else None
    total, normed = kernel.make(wanted)(x, weight, residual)
    expected = norm(wanted.eps, x, weight, residual)
    torch.testing.assert_close((total, normed), expected)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_weight_in_float32_is_multiplied_before_rounding(kernel: Kernel, device: str) -> None:
    x = torch.randn(4, 64, device=device).bfloat16()
    weight = torch.randn(64, device=device)
    wanted = Geometry(64, torch.bfloat16, torch.float32, 1e-5, torch.device(device))
    found = kernel.make(wanted)(x, weight)
    torch.testing.assert_close(found, norm(wanted.eps, x, weight), rtol=1.6e-2, atol=1e-2)
    assert found[1].dtype == torch.bfloat16


@pytest.mark.parametrize("hidden", [4096, 7168])
def test_compiles_for_sm_90(hopper: Compile, hidden: int) -> None:
    meta = torch.device("meta")
    x = torch.empty(3, hidden, dtype=torch.bfloat16, device=meta)
    wanted = Geometry(hidden, x.dtype, x.dtype, 1e-6, meta)
    with recording() as launches:
        run = choose(wanted).make(wanted)
        for residual in (None, x):
            run(x, x[0], residual)
    assert [each.stack for each in hopper(launches)] == [0, 0]
