"""What DeepGEMM is called with on Hopper: tensors lie as it reads them, without one kernel more."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from pds_kernels.fp8 import Fp8Weight, dequantise
from pds_kernels.fp8_gemm import Gemm, Spec, arguments
from pds_kernels.fp8_linear import Geometry, choose
from pds_kernels.fp8_linear import deep_gemm as calling
from pds_kernels.fp8_linear.reference import make as definition
from pds_kernels.targets import gpu
from torch import Tensor

GEOMETRY = Geometry(576, 256, (128, 128), torch.bfloat16, torch.device("meta"), True, gpu("sm_90"))


def weight(rows: int, columns: int, device: str = "cpu") -> Fp8Weight:
    torch.manual_seed(0)
    numbers = torch.randn(rows, columns, device=device).clamp(-3, 3).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128), device=device) + 0.5
    return Fp8Weight(numbers, scale, (128, 128))


def specs(tensors: Sequence[Tensor]) -> list[Spec]:
    return [
        Spec(str(each.dtype).removeprefix("torch."), tuple(each.shape), each.stride())  # type: ignore[arg-type]
        for each in tensors
    ]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[list[Spec]]:
    """In DeepGEMM's place: notes how tensors lie, and multiplies them as DeepGEMM says it does."""
    found: list[list[Spec]] = []

    def multiply(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], out: Tensor) -> None:
        found.append(specs([*left, *right, out]))
        (x, of_x), (w, of_w) = left, right
        rows = x.float() * of_x.repeat_interleave(128, 1)
        out.copy_(rows @ dequantise(w, of_w, (128, 128), torch.float32).t())

    stand_in = ModuleType("deep_gemm")
    stand_in.fp8_gemm_nt = multiply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deep_gemm", stand_in)
    return found


@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
def test_tensors_lie_as_they_are_planned(tokens: int, library: list[list[Spec]]) -> None:
    x, w = torch.randn(tokens, 256).bfloat16(), weight(576, 256)
    asked = replace(GEOMETRY, device=torch.device("cpu"))
    out = calling.linear(asked, x, w)
    assert library == ([list(arguments(Gemm(tokens, 576, 256)))] if tokens else [])
    torch.testing.assert_close(out, definition(asked)(x, w), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "deep_gemm"),
        ({"gpu": gpu("sm_100")}, "triton"),
        ({"gpu": gpu("sm_89")}, "triton"),
        ({"gpu": gpu("sm_80")}, "reference"),
        ({"gpu": None}, "triton"),
        ({"block": (128, 64)}, "triton"),
        ({"dtype": torch.float16}, "triton"),
        ({"quantised_activations": False}, "triton"),
        ({"rows": 100}, "triton"),
        ({"columns": 192}, "triton"),
        ({"device": torch.device("cpu")}, "reference"),
    ],
)
def test_deep_gemm_serves_hopper_alone(changed: dict[str, object], name: str) -> None:
    assert choose(replace(GEOMETRY, **changed)).name == name  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_on_hopper_it_gives_what_the_definition_gives(tokens: int) -> None:
    asked = replace(GEOMETRY, device=torch.device("cuda", 0), gpu=None)
    if choose(asked).name != "deep_gemm":
        pytest.skip("needs Hopper, and DeepGEMM")
    x, w = torch.randn(tokens, 256, device="cuda").bfloat16(), weight(576, 256, "cuda")
    found, expected = choose(asked).make(asked)(x, w), definition(asked)(x, w)
    assert (found.float() - expected.float()).norm() < 5e-3 * expected.float().norm()
