"""Prompts' waits by a rank's own clock: begun and ended."""

import pytest
from pds_engine.scheduler.dp.delayer import Verdict
from pds_engine.scheduler.dp.record import DelayRecord

WAITS = Verdict(False, "fuse", 1)
NOTHING = Verdict(True, "nothing", 0)


def test_a_wait_lasts_until_its_prompts_run():
    record = DelayRecord()
    record.add(WAITS, True, 10.0)
    record.add(WAITS, True, 11.0)
    assert record.held(12.0) == 2.0
    record.add(NOTHING, False, 12.0)  # the turn of decode rows
    record.add(Verdict(True, "fused", 2), True, 13.0)
    assert (record.seconds, record.ticks, record.held(20.0)) == (3.0, 2, 0.0)
    assert record.outcomes == {"fuse": 2, "fused": 1}


@pytest.mark.parametrize("then", [NOTHING, WAITS])
def test_a_wait_ends_with_the_prompts_that_waited(then: Verdict):
    """They were cancelled. The next prompt, an hour later, is not an hour old."""
    record = DelayRecord()
    record.add(WAITS, True, 10.0)
    record.add(then, False, 11.0, held=False)
    assert (record.seconds, record.held(3611.0)) == (1.0, 0.0)
