"""MXFP4: blocks of 32 numbers of four bits that share a power of two, as gpt-oss stores experts.

Open Compute Project, "OCP Microscaling Formats (MX) Specification", 2023: a number is E2M1 (a sign,
two bits of exponent, one of mantissa), a scale is E8M0 (an exponent alone, 255 is NaN).
"""

import torch
from torch import Tensor

BLOCK = 32
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = (*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES))
"""What each four bits mean; the highest is the sign."""


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The numbers of each row: [..., G · 32] in `dtype`.

    blocks: [..., G, 16] uint8, two numbers a byte, that of the low four bits first; scales:
    [..., G] uint8 or float8_e8m0fnu. Exact in bfloat16 and float32, whose exponents reach as far as
    a scale's; only numbers of 2**128 and above overflow. Besides the result, it takes four bytes of
    memory for each byte of `blocks`.

    Raises:
        ValueError: the shapes do not fit each other, or `dtype` has too small an exponent.
    """
    if blocks.shape[-1:] != (BLOCK // 2,) or blocks.shape[:-1] != scales.shape:
        raise ValueError(
            f"blocks of shape {list(blocks.shape)} and scales of shape {list(scales.shape)} do not"
            f" fit: they take [..., G, {BLOCK // 2}] and [..., G]"
        )
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"MXFP4 is exact in bfloat16 and float32, not in {dtype}")
    pairs = torch.tensor(
        [(_NUMBERS[byte & 15], _NUMBERS[byte >> 4]) for byte in range(256)],
        dtype=dtype,
        device=blocks.device,
    )
    numbers = pairs.index_select(0, blocks.flatten().int()).view(*scales.shape, BLOCK)
    factors = scales.view(torch.float8_e8m0fnu).to(dtype)
    return numbers.mul_(factors.unsqueeze(-1)).flatten(-2)
