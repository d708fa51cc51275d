"""Linear layers of FP8 weights by DeepGEMM, on Hopper.

Its kernels are compiled in warm-up (pds_kernels.builders.deep_gemm): a plan finds its calls on the
meta device. Blackwell is left to Triton. There DeepGEMM wants scales that are powers of two, and
truncates others without a word (sglang #39193).
"""

import functools
import importlib
import importlib.util
from functools import partial

import torch
from torch import Tensor

from pds_kernels import targets
from pds_kernels.fp8 import Fp8Weight
from pds_kernels.fp8.quantising import quantise
from pds_kernels.fp8_gemm import BLOCK, Gemm, run
from pds_kernels.fp8_linear.plan import Geometry, Linear

_LIBRARY = "deep_gemm"
_HOPPER = 90
_ROWS = 64
"""Of which a weight must be a multiple: its kernels store whole tiles of so many columns."""


def serves(geometry: Geometry) -> bool:
    """It multiplies FP8 by FP8 alone, with scales of 128 × 128, and gives bfloat16."""
    gpu = geometry.gpu or targets.of(geometry.device)
    return (
        gpu is not None
        and gpu.arch == _HOPPER
        and geometry.quantised_activations
        and geometry.dtype == torch.bfloat16
        and geometry.block == (BLOCK, BLOCK)
        and geometry.rows % _ROWS == 0
        and geometry.columns % BLOCK == 0
        and _there(loaded=geometry.device.type == "cuda")
    )


def make(geometry: Geometry) -> Linear:
    """Nothing is kept from call to call."""
    return partial(linear, geometry)


def linear(geometry: Geometry, x: Tensor, weight: Fp8Weight) -> Tensor:
    """plan.Linear, once `geometry` is given. The weight's numbers and its scales, in float32, are
    contiguous."""
    out = x.new_empty(len(x), geometry.rows)
    if len(x):
        gemm = Gemm(len(x), geometry.rows, geometry.columns)
        run(gemm, (*quantise(x), weight.weight, weight.scale, out))
    return out


@functools.cache
def _there(*, loaded: bool) -> bool:
    """Whether the library is installed. With `loaded` it must load, too: a plan, which is made
    where no driver is, takes it for granted, and has no other kernel.

    Raises:
        RuntimeError: it is installed, and does not load.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        return False
    if loaded:
        try:
            importlib.import_module(_LIBRARY)
        except (ImportError, OSError, RuntimeError, AssertionError) as error:
            raise RuntimeError(
                f"DeepGEMM is installed and does not load: {error}. Warm-up has compiled for it: "
                "install the build that fits this torch and driver, or leave sgl-deep-gemm out"
            ) from error
    return True
