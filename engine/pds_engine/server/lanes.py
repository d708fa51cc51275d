"""Who reads a body where: small ones at once, others off the event loop, few at a time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pds_engine.errors import Overloaded

R = TypeVar("R")

SMALL = 4 * 1024
"""Bytes that are read on the event loop: in less time than handing them over takes."""
MIDDLE = 256 * 1024
"""Bytes up to which a body does not wait for those above."""
MAX_WAITING = 32 << 20
"""Bytes that may wait in a lane."""


class Lane:
    """One body at a time, in a thread: two would only wait for each other's lock."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._bytes = 0
        self._turn = asyncio.Lock()

    async def run(self, size: int, work: Callable[[], R]) -> R:
        """Raises Overloaded when too much is waiting already."""
        if self._bytes and self._bytes + size > self._most:
            raise Overloaded("too many large requests are being read", retry_after=1)
        self._bytes += size
        try:
            async with self._turn:
                return await asyncio.to_thread(work)
        finally:
            self._bytes -= size


class Lanes:
    """Large bodies queue behind large ones alone."""

    def __init__(self) -> None:
        self._middle, self._large = Lane(), Lane()

    async def read(self, size: int, work: Callable[[], R]) -> R:
        """The result of `work` on a body of `size` bytes.

        Raises:
            Overloaded: too much is waiting already.
        """
        if size <= SMALL:
            return work()
        lane = self._middle if size <= MIDDLE else self._large
        return await lane.run(size, work)
