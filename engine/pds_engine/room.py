"""Bounds the bytes of bodies that a process holds: many uploads cannot exhaust its memory."""

import contextlib
from collections.abc import Iterator

from pds_engine.errors import Overloaded


class Share:
    """What one request holds of a room."""

    def __init__(self, room: "Room") -> None:
        self._room = room
        self.size = 0

    def take(self, size: int) -> None:
        """Raises Overloaded when others' bodies leave no room for so much more."""
        self._room.take(self, size)


class Room:
    """`most` bytes for all requests together; a single request may hold any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """One request's share, which it gives back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.size

    def take(self, share: Share, size: int) -> None:
        """Raises Overloaded when `size` bytes more are too many beside those of others."""
        others = self.held - share.size
        if others and self.held + size > self._most:
            raise Overloaded(
                f"the bodies of other requests take {others} bytes already", retry_after=1
            )
        self.held += size
        share.size += size
