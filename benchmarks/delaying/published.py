"""What each rival has published, and what its policy gives here on that run."""

from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

from delaying.costs import MACHINES
from delaying.fleet import Outcome, Policy, Trace, simulate
from delaying.rivals import Coalescer, Interval, Table, off
from delaying.traces import atom_run, sglang_run, vllm_run


class Published(NamedTuple):
    """One figure of a run, and between which bounds it counts as reproduced."""

    what: str
    found: Callable[[Outcome, Outcome], float]
    """Of the run without the policy, and of that with it."""
    figure: float
    least: float
    most: float


class Run(NamedTuple):
    machine: str
    trace: Callable[[], Trace]
    policy: Callable[[], Policy]
    figures: tuple[Published, ...]


def _faster(without: Outcome, with_policy: Outcome) -> float:
    return with_policy.rate / without.rate


def _gap(_: Outcome, with_policy: Outcome) -> float:
    return 1000 * with_policy.gap(0.5)


def _sooner(without: Outcome, with_policy: Outcome) -> float:
    return mean(with_policy.waits) / mean(without.waits)


RUNS: dict[str, Run] = {
    "sglang, offline": Run(
        "sglang",
        sglang_run,
        # The knobs of the test that asks for its gain.
        lambda: Table(longest=100, low=0.8),
        (Published("tok/s over off", _faster, 331_963 / 237_656, 1.25, 1.55),),
    ),
    "atom, 1k in, 1k out": Run(
        "atom",
        lambda: atom_run(1024),
        Coalescer,
        (Published("tok/s over off", _faster, 1.164, 1.08, 1.25),),
    ),
    "atom, 8k in, 1k out": Run(
        "atom",
        lambda: atom_run(8192),
        Coalescer,
        (Published("tok/s over off", _faster, 1.193, 1.10, 1.29),),
    ),
    "vllm, interval 2": Run(
        "vllm",
        vllm_run,
        Interval,
        (
            Published("median gap, ms", _gap, 32.1, 27.0, 37.0),
            Published("mean TTFT over off's", _sooner, 502 / 813, 0.5, 0.75),
            Published("tok/s over off", _faster, 22.59 / 22.43, 0.98, 1.03),
        ),
    ),
}


class Reproduced(NamedTuple):
    run: str
    figure: Published
    found: float

    @property
    def holds(self) -> bool:
        return self.figure.least <= self.found <= self.figure.most


def reproduce() -> list[Reproduced]:
    """Each rival on its own run."""
    found = []
    for name, run in RUNS.items():
        machine = MACHINES[run.machine]
        without = simulate(machine, run.trace(), off)
        with_policy = simulate(machine, run.trace(), run.policy())
        found += [Reproduced(name, f, f.found(without, with_policy)) for f in run.figures]
    return found
