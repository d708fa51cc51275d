"""The API server's end of the scheduler: sends requests, and hands each token to its request."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from pds_engine.errors import (
    Drained,
    GroupError,
    GroupFailed,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from pds_engine.messages import (
    AnyMessage,
    Cancel,
    Drain,
    Failed,
    Hello,
    Message,
    PeerGone,
    State,
    Submit,
    Token,
    Welcome,
)
from pds_engine.metrics import ServerMetrics
from pds_engine.server.inbox import Inbox
from pds_engine.wire import Unsendable

INBOX_BOUND = 8192
"""Tokens that may wait for a client that does not read, per HTTP request."""
_BATCH = 256
"""Messages taken in before other tasks have their turn."""
_log = logging.getLogger("pds.server")


class SchedulerLink(Protocol):
    """The part of `wire.AsyncLink` used here. `send` raises Unsendable when nothing was sent."""

    async def send(self, message: Message) -> None: ...
    async def receive(self) -> AnyMessage: ...
    def waiting(self) -> AnyMessage | None: ...
    async def lost(self) -> None: ...
    def close(self) -> None: ...


class SchedulerClient:
    """One group's scheduler, as its API server sees it.

    Args:
        connect: makes the link; called once, in the running loop.
        incarnation: of the group; empty where only the scheduler knows it.
        capacity: choices that may be open at once; beyond it, `open` raises Overloaded.
        on_loss: called once when the scheduler is lost; nothing works afterwards.
    """

    def __init__(
        self,
        connect: Callable[[], SchedulerLink],
        *,
        group: str,
        incarnation: str,
        capacity: int,
        join_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.incarnation = incarnation
        self.state: State | None = None
        self.state_at = 0.0
        self.error: GroupError | None = None
        self.draining = False
        self.metrics = ServerMetrics()
        self.clock = clock
        self.on_loss = on_loss
        self._connect = connect
        self._hello = Hello(peer="server", group=group, incarnation=incarnation, rank=-1)
        self._join_timeout = join_timeout
        self._capacity = capacity
        self._open: dict[str, tuple[Inbox, int]] = {}
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()  # bounded by capacity
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._link: SchedulerLink | None = None

    async def start(self) -> None:
        """Join the scheduler.

        Raises:
            GroupError: it did not answer within join_timeout, or is of another incarnation.
        """
        self._link = link = self._connect()
        await link.send(self._hello)
        try:
            async with asyncio.timeout(self._join_timeout):
                welcome = await link.receive()
        except TimeoutError as error:
            seconds = self._join_timeout
            raise GroupError(f"the scheduler did not answer within {seconds:g} s") from error
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"{type(welcome).__name__} came where Welcome was expected")
        if self.incarnation not in ("", welcome.incarnation):
            raise ProtocolError(f"the scheduler is of incarnation {welcome.incarnation}")
        self.incarnation = welcome.incarnation
        for work in (self._receive, self._send, self._watch):
            self._tasks.append(asyncio.create_task(self._guarded(work)))

    async def stop(self) -> None:
        """Leave; requests still open fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all(Drained("the server is stopping, ask another"))
        if self._link is not None:
            self._link.close()

    @property
    def in_flight(self) -> int:
        """Choices that this server or the scheduler has not finished."""
        return max(len(self._open), self.state.in_flight if self.state else 0)

    def open(self, submits: Sequence[Submit]) -> Inbox:
        """Send work to the scheduler. Its tokens come to the inbox; choice i is submits[i].

        Raises:
            Unavailable: draining, or the scheduler is lost.
            Overloaded: `capacity` would be exceeded.
        """
        if self.error is not None:
            raise Unavailable(f"this group takes nothing more: {self.error}", retry_after=1)
        if self.draining:
            raise Unavailable("this engine is draining", retry_after=1)
        if len(self._open) + len(submits) > self._capacity:
            raise Overloaded(
                f"{len(self._open)} requests are open of {self._capacity}", retry_after=1
            )
        known = next((s.request_id for s in submits if s.request_id in self._open), None)
        if known is not None:
            raise Unavailable(f"the request {known} is already being answered here")
        inbox = Inbox(INBOX_BOUND)
        for choice, submit in enumerate(submits):
            self._open[submit.request_id] = (inbox, choice)
            self._outbox.put_nowait(submit)
        return inbox

    def close(self, request_id: str, *, cancel: bool) -> None:
        """Forget a choice; with `cancel` the scheduler forgets it too."""
        if self._open.pop(request_id, None) is None:
            return
        self._changed.set()
        if cancel:
            self._outbox.put_nowait(Cancel(request_id=request_id))

    def drain(self, deadline_seconds: float) -> None:
        """Take no new requests, here and in the scheduler."""
        self.draining = True
        self._outbox.put_nowait(Drain(deadline_seconds=deadline_seconds))

    def peer_gone(self, incarnation: str) -> None:
        """Pass on that nothing of that incarnation writes any more."""
        self._outbox.put_nowait(PeerGone(incarnation=incarnation))

    async def drained(self, seconds: float | None) -> bool:
        """Wait until the scheduler drains and nothing is in flight; False when it took longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.error is None and not self._idle():
                    self._changed.clear()
                    await self._changed.wait()
        return self._idle()

    async def ended(self, seconds: float) -> None:
        """Wait until the scheduler has gone, for so long at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.error is None:
                    self._changed.clear()
                    await self._changed.wait()

    def _idle(self) -> bool:
        """What the scheduler reported before it got Drain may be out of date."""
        state = self.state
        quiet = state is not None and state.draining and not state.transfers_in_flight
        return quiet and not self.in_flight

    async def _receive(self) -> None:
        link = self._linked()
        while True:
            self._arrived(await link.receive())
            for _ in range(_BATCH):
                if (message := link.waiting()) is None:
                    break
                self._arrived(message)
            else:
                await asyncio.sleep(
                    0
                )  # `receive` returns at once while messages wait, and gives no task a turn

    def _arrived(self, message: AnyMessage) -> None:
        match message:
            case Token() | Failed():
                # A choice that is not open was closed while its last tokens were on their way.
                inbox, choice = self._open.get(message.request_id, (None, 0))
                if inbox is not None:
                    inbox.put(choice, message)
            case State():
                self.state, self.state_at = message, self.clock()
                self.metrics.show(message)
                self._changed.set()
            case _:
                raise ProtocolError(f"{type(message).__name__} is not for an API server")

    async def _send(self) -> None:
        link = self._linked()
        while True:
            message = await self._outbox.get()
            try:
                await link.send(message)
            except Unsendable as error:
                self._unsent(message, error)

    def _unsent(self, message: Message, error: Unsendable) -> None:
        """A message could not be made: its own request fails, and no other."""
        _log.error("a message was not sent: %s", error)
        if isinstance(message, Submit) and message.request_id in self._open:
            inbox, _ = self._open[message.request_id]
            self.close(message.request_id, cancel=False)
            inbox.fail(InvalidRequest(f"the request cannot be worked on: {error.message}"))

    async def _watch(self) -> None:
        await self._linked().lost()
        raise GroupError("the connection to the scheduler has ended")

    def _linked(self) -> SchedulerLink:
        if self._link is None:
            raise GroupError("the scheduler client was not started")
        return self._link

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except GroupError as error:
            self.lose(error)
        except Exception as error:  # whatever it is, tokens come no more
            _log.exception("the link to the scheduler failed")
            self.lose(GroupError(f"the link to the scheduler failed: {error}"))

    def lose(self, error: GroupError) -> None:
        """The scheduler is gone, or never came: all that is open fails."""
        if self.error is not None:
            return
        self.error = error
        _log.error("the scheduler is lost: %s", error)
        self._fail_all(GroupFailed(f"the group has failed: {error}", retry_after=1))
        self._changed.set()
        self.on_loss()

    def _fail_all(self, error: Exception) -> None:
        for inbox, _ in list(self._open.values()):
            inbox.fail(error)
