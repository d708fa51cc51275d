"""What a pod is to have compiled: for this machine, or for a GPU that may not be near.

The warm-up builds it and the pod's workers load it, so both ask here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pds_kernels import targets
from pds_kernels.building import Buildable
from pds_kernels.targets import Gpu

from pds_engine.artefacts.launches import launches
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check
from pds_engine.parallel.layout import ModelPart, part
from pds_engine.runner import graphs
from pds_engine.spec import DecoderSpec

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Plan:
    """A pod's artefacts."""

    target: str
    """cpu, or a kind of GPU: sm_90."""
    wanted: tuple[Buildable, ...]
    """Their names are unique."""
    eager: tuple[str, ...]
    """What none of them covers: it runs without being compiled."""


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
        wanted = graphs.plan(config, spec, mine[0], torch.device(CPU))
        return Plan(CPU, wanted, graphs.eager(spec, mine[0]))
    return Plan(str(gpu), tuple(_kernels(config, spec, mine, gpu)), ())


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
    if config.device == "cpu" or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Gpu(10 * found.major + found.minor, found.multi_processor_count)


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
    found = [each for mine in parts for each in launches(config, spec, mine, gpu)]
    return (Launcher(gpu), *(TritonKernel(launch, gpu) for launch in dict.fromkeys(found)))
