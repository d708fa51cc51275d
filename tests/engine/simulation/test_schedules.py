"""Deadlock freedom and right answers, over random schedules.

All 10,000: python -m pds_simulation.schedules (four minutes of CPU), part of `make soak`.
"""

import pytest
from pds_simulation import schedules

BATCH = 100


@pytest.mark.parametrize("first", range(0, 300, BATCH))
def test_every_request_is_answered_rightly_or_given_up(first: int):
    assert schedules.explore(first, BATCH) == []


def test_a_seed_is_a_schedule():
    """What a failure prints is enough to see it again."""
    first, second = (schedules.schedule(7) for _ in range(2))
    assert [(answer.tokens, answer.times) for answer in first.run()] == [
        (answer.tokens, answer.times) for answer in second.run()
    ]
    assert first.plans == second.plans
