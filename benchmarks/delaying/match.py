"""All policies on all traces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pds_engine.config import DelayerConfig
from pds_engine.scheduler.dp.delayer import Bounds, Delayer

from delaying.costs import MACHINES, Machine
from delaying.fleet import Outcome, Policy, Trace, View, simulate
from delaying.rivals import RIVALS, Table, off
from delaying.traces import (
    atom_run,
    bursts,
    chat,
    few_long,
    mixed,
    out_of_step,
    poisson,
    sglang_run,
    skewed,
)

LOADS = {"poisson 50%": 0.5, "poisson 80%": 0.8, "poisson 95%": 0.95, "poisson 110%": 1.1}
"""Of what `off` can do."""
BELOW = tuple(LOADS)[:3]


def ours(**knobs: float) -> Policy:
    """The engine's delayer, as it decides in an engine, with its defaults but for `knobs`."""
    config = DelayerConfig(**knobs)
    delayer = Delayer(Bounds(config.max_ticks, config.rest_ticks, config.align))

    def policy(views: Sequence[View]) -> Sequence[bool]:
        return [delayer.decide([view.row for view in views]).runs] * len(views)

    return policy


POLICIES: Mapping[str, Callable[[], Policy]] = {**RIVALS, "ours": ours}


class Case(NamedTuple):
    """A trace, on the machine whose published run it is nearest to."""

    machine: str
    trace: Trace
    asked: bool = True
    """It is one of the traces that the aims are about."""


def capacity(machine: Machine, trace: Trace) -> float:
    """Requests a second of `off`, when all are there from the start."""
    outcome = simulate(machine, trace, off)
    return len(outcome.waits) / outcome.seconds


def cases(machines: Mapping[str, Machine] = MACHINES, scale: float = 1.0) -> dict[str, Case]:
    """The traces; their rates follow from what `off` can do on these machines."""

    def of(count: int) -> int:
        return max(1, round(count * scale))

    vllm = machines["vllm"]
    most = capacity(vllm, chat(8000))
    online = {
        name: Case("vllm", poisson(13, load * most, chat(of(8000)))) for name, load in LOADS.items()
    }
    return {
        "offline": Case("sglang", sglang_run()),
        **online,
        "burst": Case("vllm", bursts(of(5))),
        # Rank 0 gets 39% of the requests: it has 80% of what it can do.
        "skewed": Case("vllm", skewed(0.8 * most / 8 / 0.3875, of(2000))),
        "persistent mixed": Case("vllm", mixed(120)),
        "few long": Case("vllm", few_long(0.6 * most, of(3000))),
        "out of step": Case("long chunks", out_of_step(of(200)), asked=False),
        "closed, 1k in": Case("atom", atom_run(1024, scale), asked=False),
        "closed, 8k in": Case("atom", atom_run(8192, scale), asked=False),
    }


def play(
    machines: Mapping[str, Machine], case: Case, name: str, made: Policy | None = None
) -> Outcome:
    """One policy on one trace. Offline, sglang's has the knobs of the test that asks for it."""
    machine = machines.get(case.machine) or replace(machines["vllm"], chunk=16384, kv=400_000)
    if name == "sglang" and case.machine == "sglang":
        made = Table(longest=100, low=0.8)
    return simulate(machine, case.trace, made or POLICIES[name]())


Outcomes = dict[str, dict[str, Outcome]]
"""Of each trace, of each policy."""


def table(
    machines: Mapping[str, Machine],
    scale: float = 1.0,
    only: Callable[[Case], bool] = lambda case: True,
) -> Outcomes:
    """All policies on the traces that are wanted."""
    return {
        name: {policy: play(machines, case, policy) for policy in POLICIES}
        for name, case in cases(machines, scale).items()
        if only(case)
    }
