"""A thread that waits for events wakes whoever polls."""

import select
import threading

from pds_engine.worker.firing import Firing
from pds_engine.worker.mailbox import Mailbox

LONG = 30.0


class Gate:
    """An event that fires when the test says so, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self._gate = threading.Event()
        self._error = error

    @property
    def fired(self) -> bool:
        return self._gate.is_set()

    def wait(self) -> None:
        assert self._gate.wait(LONG)
        if self._error is not None:
            raise self._error

    def fire(self) -> None:
        self._gate.set()


def woken(mailbox: Mailbox, seconds: float) -> bool:
    found, _, _ = select.select([mailbox.descriptor], [], [], seconds)
    assert mailbox.take() == []
    return bool(found)


def test_a_loop_is_woken_after_each_event() -> None:
    mailbox, gates = Mailbox(), [Gate(), Gate()]
    firing = Firing(mailbox.wake)
    for gate in gates:
        firing.watch(gate)
    for gate in gates:
        assert not woken(mailbox, 0)
        gate.fire()
        assert woken(mailbox, LONG)
    mailbox.close()


def test_a_loop_is_woken_by_an_event_that_fails_too() -> None:
    """It asks the event itself, and hears of the failure from it."""
    mailbox, gate = Mailbox(), Gate(RuntimeError("CUDA error"))
    Firing(mailbox.wake).watch(gate)
    gate.fire()
    assert woken(mailbox, LONG)
    mailbox.close()
