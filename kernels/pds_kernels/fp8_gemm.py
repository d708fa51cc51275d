"""GEMMs in FP8 as DeepGEMM runs them: their shapes, and the door through which each is called.

DeepGEMM multiplies x by the transpose of the weight, both float8_e4m3fn, with a float32 scale for
each 128 columns of a row of x and for each block of 128 × 128 of the weight (DeepSeek-V3 Technical
Report, 2024, section 3.3.2), and gives bfloat16.
"""

import contextlib
import contextvars
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BLOCK = 128
"""Values that share a scale, along each dimension."""
_ALIGNED = 4
"""Rows to which a column of x's scales is padded: TMA wants 16 bytes, and a scale has four."""
Layout = Literal["dense", "contiguous", "masked"]
_recorder: contextvars.ContextVar[list["Gemm"] | None] = contextvars.ContextVar(
    "recorder of GEMMs", default=None
)


@dataclass(frozen=True, slots=True)
class Gemm:
    """The shapes of one call. DeepGEMM chooses a kernel by them and by the GPU.

    - dense: x [m, k] by weight [n, k]
    - contiguous: x [m, k], whose rows lie sorted by expert, each expert's padded to a multiple of
      128; weight [groups, n, k]
    - masked: x [groups, m, k], of which each expert has some rows at the front; weight
      [groups, n, k]
    """

    m: int
    n: int
    k: int
    layout: Layout = "dense"
    groups: int = 1
    expected: int = 0
    """Rows that an expert of masked ones will have, on average: m where it is 0."""

    def __str__(self) -> str:
        experts = "" if self.layout == "dense" else f"{self.groups}x"
        return f"{self.layout} {experts}{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True, slots=True)
class Spec:
    """One argument: strides in values."""

    dtype: Literal["float8_e4m3fn", "float32", "bfloat16", "int32"]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def arguments(gemm: Gemm) -> tuple[Spec, ...]:
    """Those of `call`, in its order: x, x's scales, weight, weight's scales, out, and where there
    are groups the expert of each row ([m]) or the rows of each expert ([groups]).

    Scales of x lie by columns, each padded to a multiple of four rows. In any other order DeepGEMM
    would launch a kernel that puts them so.
    """
    groups = () if gemm.layout == "dense" else (gemm.groups,)
    stacked = (gemm.groups,) if gemm.layout == "masked" else ()
    across, down = _blocks(gemm.k), _blocks(gemm.n)
    column = -(-gemm.m // _ALIGNED) * _ALIGNED
    by_column = (column * across, 1, column)
    found = [
        _plain("float8_e4m3fn", (*stacked, gemm.m, gemm.k)),
        Spec("float32", (*stacked, gemm.m, across), by_column[1 - len(stacked) :]),
        _plain("float8_e4m3fn", (*groups, gemm.n, gemm.k)),
        _plain("float32", (*groups, down, across)),
        _plain("bfloat16", (*stacked, gemm.m, gemm.n)),
    ]
    if groups:
        found.append(_plain("int32", (gemm.m,) if gemm.layout == "contiguous" else groups))
    return tuple(found)


@contextlib.contextmanager
def recording() -> Iterator[list[Gemm]]:
    """What `run` is asked for within the block is written down, and does not run."""
    found: list[Gemm] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


def run(gemm: Gemm, tensors: Sequence[Any]) -> None:
    """Run `gemm` by DeepGEMM on what `arguments` lists; or record it."""
    recorded = _recorder.get()
    if recorded is not None:
        recorded.append(gemm)
    else:
        call(importlib.import_module("deep_gemm"), gemm, tensors)


def call(deep_gemm: Any, gemm: Gemm, tensors: Sequence[Any]) -> None:
    """Run `gemm` by the module `deep_gemm` on what `arguments` lists.

    Planning and serving call by this function, so that both get the same kernel.
    """
    x, x_scales, weight, weight_scales, out, *rows = tensors
    left, right = (x, x_scales), (weight, weight_scales)
    if gemm.layout == "dense":
        deep_gemm.fp8_gemm_nt(left, right, out)
    elif gemm.layout == "contiguous":
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(left, right, out, rows[0])
    else:
        expected = gemm.expected or gemm.m
        deep_gemm.fp8_m_grouped_gemm_nt_masked(left, right, out, rows[0], expected)


def _blocks(length: int) -> int:
    return -(-length // BLOCK)


def _plain(dtype: Any, shape: tuple[int, ...]) -> Spec:
    strides, stride = [], 1
    for length in reversed(shape):
        strides.append(stride)
        stride *= length
    return Spec(dtype, shape, tuple(reversed(strides)))
