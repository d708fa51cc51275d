"""Waits for observations that have no event of their own."""

import asyncio
import time
from collections.abc import Callable


async def until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until an observation holds; TimeoutError when it took longer."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  what is observed has no event of its own
            await asyncio.sleep(0.005)


def wait_until(holds: Callable[[], object], seconds: float) -> None:
    """The same for a test without a loop; it looks fifty times a second."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
