"""MXFP4 against its definition, and against what transformers makes of gpt-oss's tensors."""

import math

import pytest
import torch
from pds_kernels.mxfp4 import dequantise
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

DTYPES = (torch.bfloat16, torch.float32)


def number(bits: int) -> float:
    """E2M1: one bit of sign, two of exponent (bias 1), one of mantissa; exponent 0 is subnormal."""
    sign, exponent, mantissa = (-1) ** (bits >> 3), bits >> 1 & 3, bits & 1
    if exponent == 0:
        return math.copysign(mantissa / 2, sign)
    return sign * 2.0 ** (exponent - 1) * (1 + mantissa / 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_under_every_scale(dtype: torch.dtype) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(253, 16, 16)
    exponents = torch.arange(253)
    scales = exponents.to(torch.uint8).view(-1, 1).expand(253, 16)
    found = dequantise(blocks, scales, dtype).view(253, 256, 2)
    pairs = [(number(byte & 15), number(byte >> 4)) for byte in range(256)]
    factors = 2.0 ** (exponents.double() - 127)
    expected = torch.tensor(pairs, dtype=torch.float64) * factors.view(-1, 1, 1)
    assert found.dtype == dtype
    assert torch.equal(found.double(), expected)
    assert torch.equal(found.signbit(), expected.signbit())


def test_the_scale_255_is_no_number() -> None:
    scales = torch.tensor([255, 127], dtype=torch.uint8)
    found = dequantise(torch.full((2, 16), 0x22, dtype=torch.uint8), scales)
    assert found[:32].isnan().all() and (found[32:] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_transformers(dtype: torch.dtype) -> None:
    """They turn [experts, rows, columns] into [experts, columns, rows]."""
    torch.manual_seed(0)
    blocks = torch.randint(256, (3, 10, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 4), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert torch.equal(dequantise(blocks, scales, dtype), theirs.transpose(1, 2))
    typed = scales.view(torch.float8_e8m0fnu)
    assert torch.equal(dequantise(blocks, typed, dtype), theirs.transpose(1, 2))


def test_what_does_not_fit_is_refused() -> None:
    blocks = torch.zeros(2, 4, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"blocks of shape \[2, 4, 16\] and scales of shape \[2\]"):
        dequantise(blocks, torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        dequantise(blocks, torch.zeros(2, 4, dtype=torch.uint8), torch.float16)
