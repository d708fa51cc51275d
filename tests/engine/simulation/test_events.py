"""Virtual time: in order, and over when only what repeats itself is left."""

import pytest
from pds_engine.errors import PdsError
from pds_simulation.events import Events, Signal


def test_what_comes_at_one_moment_keeps_its_order():
    events, seen = Events(), []
    for name, when in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        events.at(when, lambda name=name: seen.append((name, events.now)))
    events.run()
    assert seen == [("a", 1.0), ("b", 1.0), ("c", 2.0)]


def test_nothing_happens_in_the_past():
    events, seen = Events(), []
    events.at(3.0, lambda: events.at(1.0, lambda: seen.append(events.now)))
    events.run()
    assert seen == [3.0]


def test_what_repeats_itself_keeps_nothing_going():
    events, seen = Events(), []
    events.every(1.0, lambda: seen.append(events.now))
    events.at(3.5, lambda: seen.append(-1.0))
    events.run()
    assert seen == [1.0, 2.0, 3.0, -1.0]


def test_a_run_can_stop_in_between():
    events, seen = Events(), []
    events.at(1.0, lambda: seen.append(1))
    events.at(2.0, lambda: seen.append(2))
    events.run(until=1.5)
    assert seen == [1]
    events.run()
    assert seen == [1, 2]


def test_a_world_without_end_is_an_error():
    events = Events()

    def again() -> None:
        events.after(0.0, again)

    again()
    with pytest.raises(PdsError, match="does not end"):
        events.run(most=100)


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_tells_whoever_waits_before_or_after(early: bool):
    signal: Signal[int] = Signal("a number")
    heard: list[int | None] = []
    if early:
        signal.then(heard.append)
    signal.set(4)
    if not early:
        signal.then(heard.append)
    assert heard == [4] and signal.done
