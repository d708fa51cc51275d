import pytest
from pds_engine.errors import PdsError
from pds_engine.scheduler.slots import SlotPool


def test_a_generation_tells_holders_apart() -> None:
    slots = SlotPool(2)
    assert [slots.acquire(), slots.acquire()] == [(0, 1), (1, 1)]
    slots.release(0)
    assert slots.acquire() == (0, 2)
    assert slots.free == 0


def test_misuse() -> None:
    slots = SlotPool(1)
    slots.acquire()
    with pytest.raises(PdsError, match="no slot"):
        slots.acquire()
    slots.release(0)
    with pytest.raises(PdsError, match="released twice"):
        slots.release(0)
