"""Overlap, by counting: every stage takes one tick for a step, and nothing else takes any time."""

from itertools import pairwise

import pytest
from pds_engine.messages import Submit
from pds_simulation.group import Group
from simulated import Ask, Simulate

CHUNK = 16
WAIT = 2
"""Ticks that a prompt waits at most before its first chunk begins amid running decodes: the rest of
the tick in which it comes, and the one step that is planned ahead for the first stage."""


def ticks(group: Group, request: Submit) -> float:
    group.submit(request)
    (answer,) = group.run()
    return answer.ttft


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("stages", range(1, 9))
def test_chunks_follow_each_other_through_the_stages(
    simulate: Simulate, ask: Ask, stages: int, step: int
):
    """M chunks on N stages take M + N - 1 ticks, exactly."""
    lengths = range(1, 65, step)
    found = {
        chunks: ticks(simulate(pp=stages, layers=1), ask("r", CHUNK * chunks)) for chunks in lengths
    }
    assert found == {chunks: chunks + stages - 1 for chunks in lengths}


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_the_old_behaviour_is_a_serialization(simulate: Simulate, ask: Ask, stages: int):
    """A first stage that waits for each step's output makes M · N ticks of it (vLLM #38726)."""
    lengths = (1, 2, 5, 16, 64)
    found = {
        chunks: ticks(simulate(pp=stages, layers=1, skip_output=False), ask("r", CHUNK * chunks))
        for chunks in lengths
    }
    assert found == {chunks: chunks * stages for chunks in lengths}


@pytest.mark.parametrize("chunks", [1, 16])
def test_one_step_at_a_time_is_the_same_serialization(simulate: Simulate, ask: Ask, chunks: int):
    group = simulate(pp=4, async_scheduling=False)
    assert ticks(group, ask("r", CHUNK * chunks)) == chunks * 4


def test_the_step_planned_ahead_hides_the_way_to_the_scheduler(simulate: Simulate, ask: Ask):
    """Half a tick there and half a tick back are paid for once, not for each step."""
    group = simulate(pp=4, control=lambda: 0.5)
    submit, plan, done, token = 0.5, 0.5, 0.5, 0.5
    assert ticks(group, ask("r", CHUNK * 16)) == 16 + 4 - 1 + submit + plan + done + token


@pytest.mark.parametrize("rendezvous", [True, False])
def test_what_a_transfer_costs(simulate: Simulate, ask: Ask, rendezvous: bool):
    """The first step's transfers alone: those of later steps happen while the receiver computes the
    step before, whether a send is buffered or waits for its receive."""
    group = simulate(pp=4, link=lambda: 0.25, rendezvous=rendezvous)
    assert ticks(group, ask("r", CHUNK * 16)) == 16 + 4 - 1 + (4 - 1) * 0.25


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("at", [20.0, 20.5])
def test_a_long_prompt_amid_64_decodes(simulate: Simulate, ask: Ask, stages: int, at: float):
    """As long as alone, and at most WAIT ticks more: decodes ride along with the chunks."""
    for chunks in (1, 2, 16, 64):
        group = simulate(pp=stages, layers=1, pages=2048)
        for number in range(64):
            group.submit(ask(f"d{number}", (number,), max_tokens=300))
        group.submit(ask("r", CHUNK * chunks), at=at)
        group.events.run(until=at + chunks + stages - 1 + WAIT)
        answer = group.answers["r"]
        assert answer.over and answer.ttft >= chunks + stages - 1
        assert sum(len(other.tokens) for other in group.answers.values()) > 64 * chunks / stages


@pytest.mark.parametrize("stages", [2, 4])
def test_running_decodes_do_not_wait_for_the_prompt(simulate: Simulate, ask: Ask, stages: int):
    """Every running request gets a token each `stages` ticks, with and without a chunk beside."""
    group = simulate(pp=stages, pages=2048)
    for number in range(64):
        group.submit(ask(f"d{number}", (number,), max_tokens=300))
    group.submit(ask("r", CHUNK * 64), at=20.0)
    group.events.run(until=100.0)
    assert group.answers.pop("r").over
    for answer in group.answers.values():
        steady = [time for time in answer.times if time > 10.0]
        gaps = {later - earlier for earlier, later in pairwise(steady)}
        assert gaps == {float(stages)}


@pytest.mark.parametrize("stages", [2, 4])
def test_requests_that_end_together_do_not_slow_each_other(
    simulate: Simulate, ask: Ask, stages: int
):
    """A step's share counts those whose last token is on its way: the last ones keep their pace."""
    group = simulate(pp=stages, layers=1, pages=2048)
    for number in range(64):
        group.submit(ask(f"d{number}", (number,), max_tokens=60))
    for answer in group.run():
        assert max(later - earlier for earlier, later in pairwise(answer.times)) == stages
