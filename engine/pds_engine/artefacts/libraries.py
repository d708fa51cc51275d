"""The kernels for CPUs that a model runs: libraries, each of one room and for any shape."""

from pds_kernels import (
    cpu,
    grouped_gemm,
    linear,
    mla,
    moe_gate,
    paged_attention,
    rms_norm,
    rope,
    sampler,
)

from pds_engine.spec import DecoderSpec, ExpertsSpec, MlaSpec

DENSE = (
    cpu.PROGRAM,
    linear.CPU_LIBRARY,
    paged_attention.CPU_LIBRARY,
    rms_norm.CPU_LIBRARY,
    rope.CPU_LIBRARY,
    sampler.CPU_LIBRARY,
)
OF_EXPERTS = (grouped_gemm.CPU_LIBRARY, moe_gate.CPU_LIBRARY)
OF_LATENTS = (mla.CPU_LIBRARY,)


def libraries(spec: DecoderSpec) -> tuple[cpu.Library, ...]:
    """Those of a model's layers. They know nothing of sizes: models on a volume share them."""
    mixed = any(isinstance(layer.feed, ExpertsSpec) for layer in spec.layers)
    latent = any(isinstance(layer.attention, MlaSpec) for layer in spec.layers)
    return DENSE + (OF_EXPERTS if mixed else ()) + (OF_LATENTS if latent else ())
