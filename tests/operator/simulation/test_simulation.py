"""Whole clusters through random lives: the real reconcile and plan against models of the rest.

`make simulate` runs 20,000; `python tests/operator/simulate.py --seed N --runs 1` one again.
"""

import pytest
from simulation.memory import remembering
from simulation.world import SimulatedWorld, run

SEEDS = range(100)


@pytest.mark.slow
def test_every_invariant_holds():
    with remembering():
        runs = [run(seed) for seed in SEEDS]
    assert sum(each.events for each in runs) > 2 * len(runs)
    assert sum(each.served for each in runs) > 10 * len(runs)


def test_a_run_is_the_same_again():
    with remembering():
        one, other = SimulatedWorld(7), SimulatedWorld(7)
        assert one.run() == other.run()
    assert one.clock.trace == other.clock.trace
