"""The kernels for CPUs that a model runs: libraries, each of one room and for any shape."""

from pds_kernels import (
    activation,
    cpu,
    linear,
    paged_attention,
    rms_norm,
    rope,
    sampler,
)

from pds_engine.spec import DecoderSpec

DENSE = (
    cpu.PROGRAM,
    activation.CPU_LIBRARY,
    linear.CPU_LIBRARY,
    paged_attention.CPU_LIBRARY,
    rms_norm.CPU_LIBRARY,
    rope.CPU_LIBRARY,
    sampler.CPU_LIBRARY,
)


def libraries(spec: DecoderSpec) -> tuple[cpu.Library, ...]:
    """Those of a model's layers. They know nothing of sizes: models on a volume share them."""
    return DENSE
