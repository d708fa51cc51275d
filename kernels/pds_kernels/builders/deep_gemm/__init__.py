"""FP8 GEMMs of DeepGEMM, compiled by nvcc where no GPU is.

    for kernel in kernels(plan([Gemm(m=128, n=7168, k=2048)], gpu("sm_90"))):
        kernel.build(folder)

A process on the GPU finds them: `install` puts them where its DeepGEMM looks, under the key by
which it looks.
"""

from pds_kernels.builders.deep_gemm.compilers import refusing
from pds_kernels.builders.deep_gemm.kernel import DeepGemmKernel, install, usage
from pds_kernels.builders.deep_gemm.planning import (
    Planned,
    covering,
    environment,
    kernels,
    look_up,
    plan,
)
from pds_kernels.builders.deep_gemm.toolchain import Toolchain, find
from pds_kernels.fp8_gemm import Gemm, arguments, call

__all__ = [
    "DeepGemmKernel",
    "Gemm",
    "Planned",
    "Toolchain",
    "arguments",
    "call",
    "covering",
    "environment",
    "find",
    "install",
    "kernels",
    "look_up",
    "plan",
    "refusing",
    "usage",
]
