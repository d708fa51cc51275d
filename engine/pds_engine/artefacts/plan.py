"""What a pod is to have compiled: for this machine, or for a GPU that may not be near.

The warm-up builds it and the pod's workers load it, so both ask here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from pds_kernels import targets
from pds_kernels.building import Buildable
from pds_kernels.fp8_gemm import Gemm
from pds_kernels.targets import Gpu

from pds_engine.artefacts.launches import launched
from pds_engine.artefacts.libraries import libraries
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check
from pds_engine.parallel.layout import ModelPart, part
from pds_engine.runner.shape_plan import most_tokens
from pds_engine.spec import DecoderSpec

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Plan:
    """A pod's artefacts."""

    target: str
    """cpu, or a kind of GPU: sm_90."""
    wanted: tuple[Buildable, ...]
    """Their names are unique."""


def plan(config: EngineConfig) -> Plan:
    """What the ranks of this pod will run.

    Raises:
        ConfigError: the model or the layout cannot work, or nothing can be compiled for the target.
    """
    spec, gpu = check(config), target(config)
    first = config.pod.index * config.parallelism.ranks_per_pod
    ranks = range(first, first + config.parallelism.ranks_per_pod)
    mine = [part(spec, config.parallelism, rank, config.role) for rank in ranks]
    if gpu is None:
        return Plan(CPU, libraries(spec))
    return Plan(str(gpu), tuple(_kernels(config, spec, mine, gpu)))


def target(config: EngineConfig) -> Gpu | None:
    """The GPU that is compiled for; None: this machine's CPU.

    Raises:
        ConfigError: cache.target names a GPU that is not known.
    """
    if config.cache.target:
        try:
            return targets.gpu(config.cache.target)
        except ValueError as error:
            raise ConfigError(f"cache.target: {error}", hint="or leave it out") from None
    return None if config.device == "cpu" else targets.of(torch.device("cuda", 0))


def _kernels(
    config: EngineConfig, spec: DecoderSpec, parts: Iterable[ModelPart], gpu: Gpu
) -> Iterable[Buildable]:
    """Those of all ranks of the pod, each once."""
    try:
        from pds_kernels.builders.launcher import Launcher
        from pds_kernels.builders.triton import TritonKernel
    except ImportError as error:
        raise ConfigError(
            f"Triton's kernels cannot be compiled for {gpu}: {error}", hint="install triton"
        ) from error
    found = [launched(config, spec, mine, gpu) for mine in parts]
    ours = dict.fromkeys(launch for each in found for launch in each.triton)
    gemms = [gemm for each in found for gemm in each.deep_gemm]
    return (
        Launcher(gpu),
        *(TritonKernel(launch, gpu) for launch in ours),
        *_deep_gemm(gemms, most_tokens(config), gpu),
    )


def _deep_gemm(gemms: Sequence[Gemm], most: int, gpu: Gpu) -> Sequence[Buildable]:
    """The kernels of products of these shapes, for 1 … `most` tokens.

    Raises:
        ConfigError: DeepGEMM or its compiler is not whole here.
    """
    if not gemms:
        return ()
    from pds_kernels.builders import deep_gemm

    try:
        return deep_gemm.kernels(deep_gemm.plan(deep_gemm.covering(gemms, most), gpu))
    except RuntimeError as error:
        raise ConfigError(
            f"DeepGEMM's kernels cannot be planned for {gpu}: {error}",
            hint="install the extra 'gpu' whole, or take sgl-deep-gemm out: Triton serves, too",
        ) from error
