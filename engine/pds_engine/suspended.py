"""Coroutines that begin in a callback, outside any task: most end at once, some have to wait."""

from collections.abc import Coroutine, Generator
from typing import Any


class Suspended:
    """A coroutine that began outside any task and now waits; awaiting this continues it."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(value)
            except StopIteration:
                return


def begun(coroutine: Coroutine[Any, Any, None]) -> Suspended | None:
    """Run `coroutine` until it waits or ends; None: it has ended, the usual case."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return Suspended(coroutine, waits_for)
