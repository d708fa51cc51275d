"""How a task waits for callbacks."""

import asyncio


class Wakeup:
    """One waiter, poked from callbacks: `wait` returns if `set` was called since the last."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if not self._set:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._set = False
