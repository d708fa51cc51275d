"""Where a body is read, by its size.

Up to 4 KiB on the event loop; up to 256 KiB in a thread, one at a time. A process of its own
examines a larger one, and a second thread reads what is left of it, again one at a time.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pds_engine.reading import LARGE, Reader, ReadQueue
from pds_engine.server import large

R = TypeVar("R")

SMALL = 4 * 1024
"""Bytes that are read on the event loop: handing them over takes longer."""


class Lanes:
    """Large bodies wait for large ones and for no others, in the process and in the thread.

    limits: what a large one may hold.
    """

    def __init__(self, limits: large.PromptLimits) -> None:
        self._limits = limits
        self._middle, self._large = ReadQueue(), ReadQueue()
        self._reader = Reader("pds_engine.server.large:examined")

    async def read(self, data: bytes, form: large.Form, work: Callable[[bytes], R]) -> R:
        """The result of `work` on the body, or on what it holds of `form` when it is large.

        Raises:
            RequestError: a large body is refused before `work` sees it.
            Overloaded: too much is waiting already.
        """
        size = len(data)
        if size <= SMALL:
            return work(data)
        if size > LARGE:
            data = await self._reader.read(large.question(form, self._limits), data)
        async with (self._large if size > LARGE else self._middle).turn(size):
            # Two large ones at a time would only wait for each other's lock.
            return await asyncio.to_thread(work, data)

    async def close(self) -> None:
        await self._reader.close()
