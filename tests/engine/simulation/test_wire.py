"""Transfers meet in order, and the sender learns when its buffer may change."""

import pytest
from pds_engine.errors import ProtocolError
from pds_simulation.events import Events, Signal
from pds_simulation.wire import Wire


def make(rendezvous: bool) -> tuple[Events, Wire[int]]:
    events = Events()
    return events, Wire(events, "numbers", lambda: 2.0, rendezvous=rendezvous)


def when(events: Events, signal: Signal[int]) -> list[tuple[float, int | None]]:
    heard: list[tuple[float, int | None]] = []
    signal.then(lambda value: heard.append((events.now, value)))
    return heard


def test_a_rendezvous_moves_nothing_before_the_receive():
    events, wire = make(rendezvous=True)
    buffer = [1]
    left = when(events, wire.send(0, lambda: buffer[0]))
    came: list[tuple[float, int | None]] = []
    events.at(5.0, lambda: wire.receive(0).then(lambda value: came.append((events.now, value))))
    events.run()
    assert (left, came) == ([(7.0, None)], [(7.0, 1)])


def test_a_rendezvous_reads_the_buffer_to_the_end():
    """A buffer that is filled anew too early arrives wrong, as on a real wire."""
    events, wire = make(rendezvous=True)
    buffer = [1]
    wire.send(0, lambda: buffer[0])
    came = when(events, wire.receive(0))
    events.at(1.0, lambda: buffer.__setitem__(0, 2))
    events.run()
    assert came == [(2.0, 2)]


def test_an_eager_send_has_left_at_once():
    events, wire = make(rendezvous=False)
    buffer = [1]
    left = when(events, wire.send(0, lambda: buffer[0]))
    buffer[0] = 2
    events.at(5.0, lambda: None)
    events.run()
    came = when(events, wire.receive(0))
    events.run()
    assert (left, came) == ([(0.0, None)], [(5.0, 1)])


@pytest.mark.parametrize("rendezvous", [True, False])
def test_no_transfer_overtakes_another(rendezvous: bool):
    events = Events()
    delays = iter([5.0, 1.0])
    wire: Wire[int] = Wire(events, "numbers", lambda: next(delays), rendezvous=rendezvous)
    came = []
    for step in (0, 1):
        wire.receive(step).then(lambda value: came.append((events.now, value)))
        wire.send(step, lambda step=step: step)
    events.run()
    assert came == [(5.0, 0), (5.0, 1)]
    assert wire.faults == []


@pytest.mark.parametrize("rendezvous", [True, False])
def test_both_ends_mean_the_same_step(rendezvous: bool):
    _, wire = make(rendezvous)
    wire.send(3, lambda: 0)
    with pytest.raises(ProtocolError, match="step 3 is sent, 4 is received"):
        wire.receive(4)


@pytest.mark.parametrize("rendezvous", [True, False])
def test_what_is_left_over_is_named(rendezvous: bool):
    _, wire = make(rendezvous)
    wire.send(0, lambda: 0)
    assert wire.faults == ["numbers of step 0 was sent, not received"]
    _, wire = make(rendezvous)
    wire.receive(0)
    assert wire.faults == ["numbers of step 0 was never sent"]
