"""The bytes of all bodies together have a bound; a single body has none."""

import pytest
from pds_engine.errors import Overloaded
from pds_engine.room import Room


def test_one_alone_may_hold_any_number_however_it_comes():
    room = Room(1024)
    with room.share() as alone:
        for _ in range(5):
            alone.take(1000)
        assert room.held == 5000
    assert room.held == 0


def test_beside_others_there_is_a_bound():
    room = Room(1024)
    with room.share() as one, room.share() as other:
        one.take(600)
        other.take(400)
        for share in (one, other):
            with pytest.raises(Overloaded, match="the bodies of other requests take"):
                share.take(100)
        assert room.held == 1000
    assert room.held == 0
