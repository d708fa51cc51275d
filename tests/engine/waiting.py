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


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server that others may be connecting to.

    Python 3.11 leaks a connection that was accepted in the same turn of the loop as `close`
    (cpython #109564): listen no more first, and let what was accepted get its handler.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    await asyncio.sleep(0)
    server.close()
