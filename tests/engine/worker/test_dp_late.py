"""A dp rank whose scheduler is late delays the others, and nothing else happens."""

import os
import signal
import time

import pytest
from comparing_groups import compare
from pds_engine.messages import Token

pytestmark = pytest.mark.slow

LATE = 3.0
"""Seconds; step_timeout is twice as long."""

COUNT = 120
"""Tokens of each answer."""


@pytest.mark.parametrize("sync", ["host", "device"])
def test_a_scheduler_that_is_late_delays_and_never_diverges(
    start, shaped, prompt, submit, logprobs, sync
):
    config = shaped(parallelism__dp=2, dp__sync_device=sync, scheduler__step_timeout=2 * LATE)
    group = start(config, "late")
    group.await_ready()
    asked = [submit(f"r{at}", prompt(10 + 40 * (at % 3), at), COUNT) for at in range(6)]
    for at, each in enumerate(asked):
        group.send(each, at % 2)
    found = {each.request_id: list[Token]() for each in asked}

    def hear(seconds: float) -> bool:
        """Whether a token came."""
        try:
            message = group.receive(seconds)
        except TimeoutError:
            return False
        if isinstance(message, Token):
            found[message.request_id].append(message)
        return isinstance(message, Token)

    while not all(found.values()):
        hear(60)
    late, stopped = group.schedulers[1].pid, time.monotonic()
    os.kill(late, signal.SIGSTOP)
    try:
        while (left := stopped + LATE / 2 - time.monotonic()) > 0:
            hear(left)  # steps that were in flight
        while (left := stopped + LATE - time.monotonic()) > 0:
            assert not hear(left)
    finally:
        os.kill(late, signal.SIGCONT)
    assert all(len(each) < COUNT for each in found.values())
    while any(len(each) < COUNT for each in found.values()):
        hear(60)
    for each in asked:
        assert [token.index for token in found[each.request_id]] == list(range(COUNT))
        compare(each, found[each.request_id], logprobs)
    group.idle()
    one, other = group.reports
    assert (one.passes, one.steps_done) == (other.passes, other.steps_done)
    assert one.delayer_passes == other.delayer_passes
