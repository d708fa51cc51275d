"""The API server's end of its schedulers: sends requests, and hands each token to its request."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from pds_engine.errors import (
    DeadlinePassed,
    Drained,
    GroupError,
    GroupFailed,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    TransferFailed,
    Unavailable,
)
from pds_engine.messages import (
    AnyMessage,
    Bound,
    Cancel,
    Claimed,
    Drain,
    Failed,
    Hello,
    Message,
    Offered,
    PeerGone,
    Room,
    State,
    Submit,
    Token,
    Welcome,
    Withdrawn,
)
from pds_engine.metrics import ServerMetrics
from pds_engine.scheduler.party import failure
from pds_engine.server.inbox import Inbox
from pds_engine.server.merged import merged
from pds_engine.server.placement import Placement
from pds_engine.wire import Unsendable

INBOX_BOUND = 8192
"""Tokens that may wait for a client that does not read, per HTTP request."""
EXPIRY = 0.1
"""Seconds between looks at deadlines of requests that no dp rank has."""
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
    """One group's schedulers, one a dp rank, as its API server sees them.

    Args:
        connect: make the links, by dp rank; each called once, in the running loop.
        incarnation: of the group; empty where only the scheduler knows it.
        capacity: choices that may be open at once; beyond it, `open` raises Overloaded.
        placement: binds requests to dp ranks; None of a single one.
        on_loss: called once when a scheduler is lost; nothing works afterwards.
    """

    def __init__(
        self,
        connect: Sequence[Callable[[], SchedulerLink]],
        *,
        group: str,
        incarnation: str,
        capacity: int,
        placement: Placement | None = None,
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
        self._placement = placement
        self._open: dict[str, tuple[Inbox, int]] = {}
        self._outboxes: list[asyncio.Queue[Message]] = [asyncio.Queue() for _ in connect]
        """By dp rank; bounded by capacity."""
        self._states: list[State | None] = [None] * len(connect)
        self._told: list[Inbox] = []
        """Where something has come that nobody was notified of yet."""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._links: list[SchedulerLink] = []

    async def start(self) -> None:
        """Join the schedulers.

        Raises:
            GroupError: one did not answer within join_timeout, or is of another incarnation.
        """
        self._links = [connect() for connect in self._connect]
        for link in self._links:
            await self._join(link)
        for rank in range(len(self._links)):
            for work in (self._receive, self._send, self._watch):
                self._tasks.append(asyncio.create_task(self._guarded(partial(work, rank))))
        if self._placement is not None:
            self._tasks.append(asyncio.create_task(self._guarded(self._expire)))

    async def _join(self, link: SchedulerLink) -> None:
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

    async def stop(self) -> None:
        """Leave; requests still open fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all(Drained("the server is stopping, ask another"))
        for link in self._links:
            link.close()

    @property
    def in_flight(self) -> int:
        """Choices that this server or the scheduler has not finished."""
        return max(len(self._open), self.state.in_flight if self.state else 0)

    @property
    def dp_ranks(self) -> list[State]:
        """The last report of each, where there are several."""
        known = [state for state in self._states if state is not None]
        return known if len(self._states) > 1 else []

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
        if (placement := self._placement) is not None:
            if not placement.ready:
                raise Unavailable("not all dp ranks are ready", retry_after=5)
            if not placement.accepts(submits):
                raise Overloaded(f"{placement.waiting} requests are waiting already", retry_after=1)
        known = next((s.request_id for s in submits if s.request_id in self._open), None)
        if known is not None:
            raise Unavailable(f"the request {known} is already being answered here")
        inbox = Inbox(INBOX_BOUND)
        for choice, submit in enumerate(submits):
            self._open[submit.request_id] = (inbox, choice)
            if placement is None:
                self._outboxes[0].put_nowait(submit)
            elif placement.add(submit, time.time()) and placement.hands_on:
                self._outboxes[0].put_nowait(Claimed(request_id=submit.request_id))
        self._bind()
        return inbox

    def close(self, request_id: str, *, cancel: bool) -> None:
        """Forget a choice; with `cancel` the scheduler forgets it too."""
        if self._open.pop(request_id, None) is None:
            return
        self._changed.set()
        placement, rank = self._placement, 0
        if placement is not None:
            bound, waited = placement.rank_of(request_id), placement.withdraw(request_id)
            placement.ended(request_id)
            if bound is None and not (waited and placement.hands_on):
                return
            rank = bound or 0  # dp rank 0 keeps the offer of one that waited
        if cancel:
            self._outboxes[rank].put_nowait(Cancel(request_id=request_id))

    def drain(self, deadline_seconds: float) -> None:
        """Take no new requests, here and in the scheduler."""
        self.draining = True
        self._bind(all_of_them=True)
        self._tell_all(Drain(deadline_seconds=deadline_seconds))

    def peer_gone(self, incarnation: str) -> None:
        """Pass on that nothing of that incarnation writes any more."""
        self._tell_all(PeerGone(incarnation=incarnation))

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
        quiet = all(
            s is not None and s.draining and not s.transfers_in_flight for s in self._states
        )
        return quiet and not self.in_flight

    def _tell_all(self, message: Message) -> None:
        for outbox in self._outboxes:
            outbox.put_nowait(message)

    def _bind(self, *, all_of_them: bool = False) -> None:
        if self._placement is not None:
            for rank, submit in self._placement.bind(all_of_them=all_of_them):
                if self._placement.hands_on and rank:
                    bound = Bound(request_id=submit.request_id, dp_rank=rank)
                    self._outboxes[0].put_nowait(bound)
                self._outboxes[rank].put_nowait(submit)

    async def _expire(self) -> None:
        """End the requests whose deadline passes before any dp rank could take them."""
        late = DeadlinePassed("the deadline of the request has passed")
        unoffered = TransferFailed("no decode group has offered pages for it in time")
        while self._placement is not None:
            await asyncio.sleep(EXPIRY)
            for submit in self._placement.expired(time.time()):
                self._arrived(0, failure(submit.request_id, late))
                if self._placement.hands_on:  # dp rank 0 keeps its offer
                    self._outboxes[0].put_nowait(Cancel(request_id=submit.request_id))
            for submit in self._placement.forsaken(time.time()):
                self._arrived(0, failure(submit.request_id, unoffered))
            self._notify()

    async def _receive(self, rank: int) -> None:
        link = self._links[rank]
        while True:
            self._arrived(rank, await link.receive())
            for _ in range(_BATCH):
                if (message := link.waiting()) is None:
                    self._notify()
                    break
                self._arrived(rank, message)
            else:
                self._notify()
                # `receive` returns at once while messages wait, and gives no task a turn.
                await asyncio.sleep(0)

    def _notify(self) -> None:
        """A step's tokens have come together: each request writes once for all of its own."""
        told, self._told = self._told, []
        for inbox in told:
            inbox.notify()

    def _arrived(self, rank: int, message: AnyMessage) -> None:
        match message:
            case Token() | Failed():
                # A choice that is not open was closed while its last tokens were on their way.
                inbox, choice = self._open.get(message.request_id, (None, 0))
                if inbox is not None:
                    if inbox.put(choice, message):
                        self._told.append(inbox)
                    if self._placement is not None:
                        self._placement.grew(message.request_id)
            case State():
                self._states[rank] = message
                known = [state for state in self._states if state is not None]
                self.state, self.state_at = merged(known), self.clock()
                if self._placement is not None:  # what waits here is the group's too
                    tokens = self.state.queued_tokens + self._placement.queued_tokens
                    self.state = replace(self.state, queued_tokens=tokens)
                self.metrics.show(self.state)
                self._changed.set()
            case Room() if self._placement is not None:
                self._placement.room(rank, message)
                self._bind()
            case Offered() if self._placement is not None:
                if self._placement.offered(message.request_id):
                    self._outboxes[0].put_nowait(Claimed(request_id=message.request_id))
                self._bind()
            case Withdrawn() if self._placement is not None:
                if self._placement.withdrawn(message.request_id):
                    gone = TransferFailed("the decode side gave the request up")
                    self._arrived(0, failure(message.request_id, gone))
            case Room() | Offered() | Withdrawn():
                pass  # to the servers of other pods, which take no requests
            case _:
                raise ProtocolError(f"{type(message).__name__} is not for an API server")

    async def _send(self, rank: int) -> None:
        link, outbox = self._links[rank], self._outboxes[rank]
        while True:
            message = await outbox.get()
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

    async def _watch(self, rank: int) -> None:
        await self._links[rank].lost()
        raise GroupError("the connection to the scheduler has ended")

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
