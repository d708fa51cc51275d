"""Prompts that come almost together to idle dp ranks: in how many passes they are computed."""

import random

import pytest
from bounds import bounded
from pds_engine.messages import Role
from pds_simulation.cluster import Cluster
from pds_simulation.events import Events
from pds_simulation.group import Group, Machine
from pds_simulation.replicas import Between, DataParallelGroup
from pds_simulation.wire import Delay
from simulated import Ask

STEP = 0.01
"""Seconds of a step."""


def passes(ask: Ask, role: Role, apart: float, delay: Delay, sync: Delay) -> int:
    """Steps with tokens of prompts, of two prompts that come so many seconds apart to two ranks of
    three."""
    events = Events()
    cluster = Cluster(events, delay)
    machine = Machine(pages=256, step_time=lambda stage, tokens, context: STEP, control=delay)
    common = {"chunk_size": 64, "max_step_tokens": 80, "max_running": 16}
    settings = bounded(role=role, dp=3, **common)
    group = DataParallelGroup(events, settings, machine, Between(sync=sync), role)
    if role == "prefill":
        for rank in group.ranks:
            cluster.join(rank)
        cluster.add(bounded(role="decode", **common), machine)
    for rank in (0, 1):
        request, at = ask(f"r{rank}", range(100 * rank, 100 * rank + 20), 3), 1.0 + apart * rank
        if role == "prefill":
            cluster.submit(request, rank, 0, at)
        else:
            group.submit(request, rank, at)
    if role == "prefill":
        cluster.run()
        assert group.disagreements() == []
    else:
        group.run()
    return len({step for rank in group.ranks for step in with_prompts(rank)})


def with_prompts(rank: Group) -> list[int]:
    return [plan.step_id for plan in rank.plans if any(row.length > 1 for row in plan.rows)]


@pytest.mark.parametrize("role", ["unified", "prefill"])
def test_two_prompts_of_one_moment_share_a_pass(ask: Ask, role: Role):
    assert passes(ask, role, 0.0, lambda: 0.0, lambda: 0.0) == 1
    assert passes(ask, role, 0.0, lambda: 0.001, lambda: 0.0003) == 1


def jittered(ask: Ask, role: Role, apart: float) -> list[int]:
    """With 0.2 ms, more or less, for each message and each row."""
    found = []
    for seed in range(40):
        rng = random.Random(seed)
        delay = lambda rng=rng: rng.expovariate(5_000)  # noqa: E731
        found.append(passes(ask, role, apart, delay, delay))
    return found


@pytest.mark.parametrize("role", ["unified", "prefill"])
@pytest.mark.parametrize("apart", [0.0, 0.001])
def test_idle_ranks_wait_for_prompts_that_come_almost_together(ask: Ask, role: Role, apart: float):
    """sglang #23588: on a prefill group they took two passes, one of them half idle."""
    assert jittered(ask, role, apart) == [1] * 40


@pytest.mark.parametrize("role", ["unified", "prefill"])
def test_and_for_no_others(ask: Ask, role: Role):
    assert jittered(ask, role, 0.005) == [2] * 40
