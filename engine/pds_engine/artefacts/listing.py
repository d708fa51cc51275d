"""The plan of a whole group as data that can be printed: what each stage is to have compiled."""

from collections.abc import Iterator
from dataclasses import dataclass

from pds_engine.artefacts.plan import plan, target
from pds_engine.config import EngineConfig
from pds_engine.runner.shape_plan import WarmStep, steps, token_counts


@dataclass(frozen=True, slots=True)
class StageArtefacts:
    """Of one pod's stage."""

    pod: int
    """Its index in the group."""
    kinds: tuple[str, ...]
    """The compiler of each artefact."""
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Of a group."""

    target: str
    steps: tuple[WarmStep, ...]
    """What is run to see what is launched; none on a CPU: its kernels take any number of tokens."""
    pods: tuple[StageArtefacts, ...]


def listing(config: EngineConfig) -> Listing:
    """What every pod of the group is to have compiled.

    Raises:
        ConfigError: as artefacts.plan.plan.
    """
    gpu = target(config)
    counts = () if gpu is None else token_counts(gpu.sms, config.parallelism.tp)
    pods = tuple(_pods(config))
    return Listing("cpu" if gpu is None else str(gpu), steps(config.role, counts), pods)


def _pods(config: EngineConfig) -> Iterator[StageArtefacts]:
    split = config.parallelism
    for index in range(-(-split.ranks // split.ranks_per_pod)):
        pod = config.pod.model_copy(update={"index": index})
        found = plan(config.model_copy(update={"pod": pod}))
        kinds = tuple(each.kind for each in found.wanted)
        names = tuple(each.name for each in found.wanted)
        yield StageArtefacts(index, kinds, names)
