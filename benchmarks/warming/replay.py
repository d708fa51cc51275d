"""How long warm-ups of many pods would take if each had cores of its own: in virtual time, by the
engine's own queues and the costs of real builds. Pure."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from common import ROOT

sys.path.insert(0, str(ROOT / "tests" / "kernels" / "cache"))
from pds_kernels.cache.sharing import place
from sharing_world import BUILD, World


@dataclass(frozen=True, slots=True)
class Chain:
    """The longest chain of builds and looks at the volume."""

    seconds: float
    builds: int
    """By all pods."""


def replay(
    wants: Sequence[Sequence[str]],
    begins: Sequence[Fraction],
    costs: Mapping[str, float],
    *,
    workers: int,
    stages: int = 0,
) -> Chain:
    """Pods that want these keys, on one volume. `stages`: groups of so many pods each, whose stages
    warm up one after another; 0: all at once."""
    keys = tuple(dict.fromkeys(key for each in wants for key in each))
    after = {pod: pod - 1 for pod in range(len(wants)) if stages and pod % stages}
    world = World(0, keys, begins, workers, costs=costs, wants=wants, after=after)
    return Chain(world.run(), sum(world.begun.values()))


def apart(wants: Sequence[Sequence[str]], costs: Mapping[str, float], *, workers: int) -> Chain:
    """The same pods at once, each without what the others build."""
    alone = [replay([each], [Fraction(0)], costs, workers=workers) for each in wants]
    return Chain(max(each.seconds for each in alone), sum(each.builds for each in alone))


def makespan(pods: int, workers: int, count: int) -> tuple[float, int]:
    """In builds, of `count` keys that take equally long; and the bound, one more than what workers
    without a volume between them would need."""
    begins = [place(pod, pods) for pod in range(pods)]
    took = World(0, [f"k{number}" for number in range(count)], begins, workers).run()
    return took / BUILD, math.ceil(count / (pods * workers)) + 1
