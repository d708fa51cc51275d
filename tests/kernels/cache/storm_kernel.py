"""A kernel to compile, in as many variants as there are numbers; nothing of it is run."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def scale(x, n, VARIANT: tl.constexpr):
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(x + at, tl.load(x + at, at < n) * VARIANT, at < n)


def compile_variant(number: int) -> bytes:
    """Its cubin for sm_90, by way of Triton's cache."""
    source = ASTSource(
        fn=scale, signature={"x": "*fp32", "n": "i32"}, constexprs={"VARIANT": number}
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
