"""The reader of bodies, given ASGI's messages one after the other."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from pds_engine.body import Bounds, Receive, read
from pds_engine.errors import BodyTimeout, BodyTooLarge, ClientGone, Overloaded
from pds_engine.room import Room

BOUNDS = Bounds(size=10, seconds=5, too_large="too large", too_late="too late")
PATIENT = BOUNDS._replace(patience=3)


def receiving(*sizes: int, ended: bool = True) -> tuple[Receive, list[MutableMapping[str, Any]]]:
    """`receive` of a body in such pieces, and what it has not given yet; then it waits."""
    last = len(sizes) - 1
    left: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"x" * size, "more_body": not ended or index < last}
        for index, size in enumerate(sizes)
    ]

    async def receive() -> MutableMapping[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive, left


@pytest.mark.parametrize("sizes", [(0,), (10,), (4, 6), (4, 0, 6, 0)])
async def test_a_body_within_its_bounds_takes_its_share(sizes: tuple[int, ...]) -> None:
    room = Room(100)
    receive, left = receiving(*sizes)
    with room.share() as share:
        assert await read(receive, BOUNDS, share) == b"x" * sum(sizes)
        assert room.held == sum(sizes)
    assert (room.held, left) == (0, [])


@pytest.mark.parametrize(
    ("bounds", "sizes", "unread"),
    [
        (BOUNDS, (11,), 0),
        (BOUNDS, (6, 6, 6), 1),
        (PATIENT, (6, 6, 6), 0),  # to its end, so that its sender hears the refusal
        (PATIENT, (20, 20, 20), 1),
    ],
)
async def test_a_body_above_its_bound(bounds: Bounds, sizes: tuple[int, ...], unread: int) -> None:
    room = Room(100)
    receive, left = receiving(*sizes)
    with room.share() as share, pytest.raises(BodyTooLarge, match="too large"):
        await read(receive, bounds, share)
    assert len(left) == unread


async def test_a_body_that_does_not_come() -> None:
    receive, _ = receiving(4, ended=False)
    with Room(100).share() as share, pytest.raises(BodyTimeout, match="too late"):
        await read(receive, BOUNDS._replace(seconds=0.01), share)


async def test_a_client_that_leaves() -> None:
    receive, left = receiving(4, ended=False)
    left.append({"type": "http.disconnect"})
    with Room(100).share() as share, pytest.raises(ClientGone):
        await read(receive, BOUNDS, share)


async def test_in_a_room_that_is_full_there_is_place_for_nothing_else() -> None:
    room = Room(10)
    with room.share() as alone, room.share() as other:
        alone.take(50)
        with pytest.raises(Overloaded):
            await read(receiving(1)[0], BOUNDS, other)
        assert await read(receiving(0)[0], BOUNDS, other) == b""
