"""A scheduler that answers from a script, for the API server's tests."""

import asyncio
from collections.abc import Callable, Iterable

from pds_engine.messages import (
    AnyMessage,
    Cancel,
    Failed,
    Hello,
    Message,
    State,
    Submit,
    Token,
    Welcome,
)

Script = Callable[[Submit], Iterable[Token | Failed]]
IDLE = State(
    in_flight=0,
    running=0,
    transfers_in_flight=0,
    queued_tokens=0,
    kv_used=3,
    kv_total=64,
    kv_quarantined=0,
    draining=False,
    ranks_ready=1,
    kv_fingerprint="f00d",
    steps_done=0,
    oldest_step_seconds=0.0,
)


def outputs(ids: list[int], *, end: str = "stop", cached: int = 0) -> Script:
    """A script that answers every request with `ids`, cut at its max_tokens."""

    def script(submit: Submit) -> Iterable[Token]:
        known = len(submit.output_ids)
        for index in range(known, len(ids)):
            full = index + 1 == submit.sampling.max_tokens
            last = full or index + 1 == len(ids)
            yield Token(
                request_id=submit.request_id,
                index=index,
                token=ids[index],
                finish_reason=("length" if full else end) if last else None,
                cached_tokens=cached if index == known else 0,
            )
            if last:
                return

    return script


class FakeScheduler:
    """The other end of an Engine's link, within the process."""

    def __init__(self, script: Script, incarnation: str = "inc") -> None:
        self.script = script
        self.incarnation = incarnation
        self.received: list[Message] = []
        self.inbound: asyncio.Queue[AnyMessage] = asyncio.Queue()
        self.died = asyncio.Event()
        self.seen = asyncio.Condition()

    async def send(self, message: Message) -> None:
        self.received.append(message)
        if isinstance(message, Hello):
            self.inbound.put_nowait(Welcome(incarnation=self.incarnation))
            self.inbound.put_nowait(IDLE)
        if isinstance(message, Submit):
            for answer in self.script(message):
                self.inbound.put_nowait(answer)
        async with self.seen:
            self.seen.notify_all()

    async def receive(self) -> AnyMessage:
        return await self.inbound.get()

    async def lost(self) -> None:
        await self.died.wait()

    def close(self) -> None:
        self.died.set()

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.received if isinstance(message, kind)]

    async def until(self, kind: type[Message], count: int = 1) -> list[Message]:
        """Wait, at most 5 s, until `count` messages of `kind` have come."""
        async with asyncio.timeout(5), self.seen:
            await self.seen.wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def cancelled(self) -> set[str]:
        return {m.request_id for m in self.received if isinstance(m, Cancel)}
