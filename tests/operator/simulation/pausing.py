"""Coroutines without an event loop: each of their waits hands control back for so many seconds."""

import types
from collections.abc import Coroutine, Generator
from typing import Any


class Pause:
    """Awaiting it hands control back for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self.seconds


@types.coroutine
def together(
    *works: Coroutine[Any, Any, Any], return_exceptions: bool
) -> Generator[float, None, list[Any]]:
    """As `asyncio.gather`: each goes on when its own pause is over, the one asked first before."""
    ended: list[Any] = [None] * len(works)
    due = dict.fromkeys(range(len(works)), 0.0)
    now = 0.0
    try:
        while due:
            at = min(due, key=due.__getitem__)
            if due[at] > now:
                yield due[at] - now
                now = due[at]
            try:
                due[at] = now + works[at].send(None)
            except StopIteration:
                del due[at]
            except Exception as error:
                ended[at] = error
                del due[at]
    finally:
        for work in works:
            work.close()
    return ended
