"""Liveness of data parallelism over random schedules; and one dp rank is what a group always was.

All 10,000: python -m pds_simulation.dp_schedules (ten minutes of CPU), part of `make soak`.
"""

import pytest
from pds_engine.messages import StepPlan
from pds_engine.scheduler.party import WORKERS
from pds_engine.scheduler.planner import Planner
from pds_engine.scheduler.settings import Settings
from pds_simulation import dp_schedules, schedules
from pds_simulation.events import Events
from pds_simulation.group import Group, Machine, ReceivedAnswer
from pds_simulation.replicas import DataParallelGroup
from simulated import Ask, SimulateRanks

BATCH = 40


@pytest.mark.parametrize("first", range(0, 4 * BATCH, BATCH))
def test_every_schedule_comes_to_a_right_end(first: int):
    assert dp_schedules.explore(first, BATCH) == []


def test_a_seed_is_a_schedule():
    first, second = (dp_schedules.schedule(7) for _ in range(2))
    for made in (first, second):
        made.run()
    assert [group.bus.passes for group in first.groups] == [
        group.bus.passes for group in second.groups
    ]
    assert first.events.now == second.events.now


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_idle_group_does_nothing(simulate_ranks: SimulateRanks, ask: Ask, repeats: int):
    """After the last token all ranks park: no pass, no event, until there is work again."""
    group = simulate_ranks(dp=4, pp=2, repeats=repeats)
    group.submit(ask("r", 20, 3), 2)
    group.run()
    passes, wakes, happened = len(group.bus.passes), group.bus.wakes, group.events.happened
    assert wakes == 1
    group.events.after(1000.0, lambda: None)
    group.run()
    ticks = 4 * 1000
    assert group.events.happened - happened <= ticks + 4
    assert len(group.bus.passes) == passes
    group.submit(ask("again", 20, 3), 0, at=group.events.now)
    group.run()
    assert group.bus.wakes == 2


def test_a_scheduler_that_is_late_by_seconds_delays_all_and_diverges_from_none(
    simulate_ranks: SimulateRanks, ask: Ask
):
    def answers(late: float) -> list[ReceivedAnswer]:
        group = simulate_ranks(dp=2, tp=2)
        if late:
            group.events.at(5.5, lambda: pause(group.ranks[1], late))
        group.submit(ask("busy", 20, 20), 0)
        group.submit(ask("other", 7, 9), 1, at=3.0)
        return group.run()

    in_time, delayed = answers(0.0), answers(7.0)
    assert [each.tokens for each in in_time] == [each.tokens for each in delayed]
    # The two steps in flight go on meanwhile.
    assert 7.0 - 2.0 <= delayed[0].times[-1] - in_time[0].times[-1] <= 7.0


def pause(rank: Group, seconds: float) -> None:
    """Its scheduler takes nothing in for so long."""
    handle = rank.receive
    until = rank.events.now + seconds
    rank.receive = lambda *message: rank.events.at(until, lambda: handle(*message))  # type: ignore[method-assign]
    rank.events.at(until, lambda: setattr(rank, "receive", handle))


# ---- dp 1 ------------------------------------------------------------------------------------


class RankMaker:
    """Makes groups of one dp rank where schedules make groups."""

    def __init__(self) -> None:
        self.groups: list[DataParallelGroup] = []

    def __call__(self, events: Events, settings: Settings, machine: Machine) -> Group:
        self.groups.append(DataParallelGroup(events, settings, machine))
        return self.groups[-1].ranks[0]


@pytest.mark.parametrize("first", range(0, 60, 30))
def test_one_dp_rank_is_a_group(monkeypatch: pytest.MonkeyPatch, first: int):
    """Plan by plan, and time by time; it gathers nothing and wakes nobody."""
    for seed in range(first, first + 30):
        alone = schedules.schedule(seed)
        with monkeypatch.context() as patched:
            made = RankMaker()
            patched.setattr(schedules, "Group", made)
            schedules.schedule(seed)
        (ranks,) = made.groups
        assert [a.times for a in ranks.run()] == [a.times for a in alone.run()]
        assert ranks.ranks[0].plans == alone.plans
        assert (ranks.bus.collectives, ranks.bus.wakes, ranks.bus.passes) == ([0], 0, [])
        where = ranks.ranks[0].core.planner.passes
        assert (where.next_id, where.gathering, where.parked) == (0, False, True)


def plan_as_before(planner: Planner, now: float) -> None:
    """How steps were issued when there was no dp rank: picked and issued in one go."""
    while not planner.steps.full:
        picked = planner.steps.pick()
        if picked is None:
            return
        for victim in picked.victims:
            planner._ledger.preempt(victim)
        if not (picked.decodes or picked.chunks):
            return
        planner._out.put(WORKERS, planner.steps.issue(picked, planner._prefill.push, now))


def test_plans_at_dp_1_are_what_they_were(monkeypatch: pytest.MonkeyPatch):
    preemptions = 0
    for seed in range(100):
        now = schedules.schedule(seed)
        now.run()
        with monkeypatch.context() as patched:
            patched.setattr(Planner, "plan", plan_as_before)
            before = schedules.schedule(seed)
            before.run()
        assert now.plans == before.plans
        assert all(isinstance(plan, StepPlan) and plan.dp_tokens == () for plan in now.plans)
        preemptions += now.core.ledger.preemptions
    assert preemptions > 20
