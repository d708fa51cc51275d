"""From one client's request to its answer: pairs are tried, bytes are forwarded as they come.

A stream is the prefill group's bytes up to its end of file, then the decode group's, which wait in
their socket until then. Until the first byte a failed pair is replaced by another; after it the
stream ends with an error event. (Migration will resume it there, from the
journal that `sse` now strips.)
"""

import asyncio
import logging
from time import monotonic

from pds_engine.errors import Overloaded, PdsError, Unavailable
from pds_engine.router.answers import (
    Headers,
    Receive,
    Send,
    answer,
    answer_error,
    error_event,
)
from pds_engine.router.attempt import Attempt, Failure, Side
from pds_engine.router.backends import Fleet
from pds_engine.router.call import STREAMED, Call
from pds_engine.router.config import RouterConfig
from pds_engine.router.forward import Forward
from pds_engine.router.metrics import Metrics
from pds_engine.router.policy import Pick
from pds_engine.router.upstream import Signal

logger = logging.getLogger(__name__)
EVENT_STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Relay:
    """Answers the calls of one router. `key` signs what it tells the groups."""

    def __init__(
        self, config: RouterConfig, fleet: Fleet, key: bytes | None, metrics: Metrics
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._key = key
        self._metrics = metrics
        self.in_flight = 0

    def admit(self) -> None:
        """Check the bound on open requests before a body is read.

        Raises:
            Overloaded: the client may come again in a second.
        """
        if self.in_flight >= self._config.max_in_flight:
            raise Overloaded(
                f"{self.in_flight} requests are open, which is this router's bound", retry_after=1
            )

    async def serve(self, call: Call, receive: Receive, send: Send, headers: Headers = ()) -> None:
        """Answer `call`; `headers` are added to the response."""
        self.in_flight += 1
        exchange = _Exchange(
            self, call, send, [(b"x-request-id", call.request_id.encode()), *headers]
        )
        watcher = asyncio.get_running_loop().create_task(exchange.watch(receive))
        try:
            await exchange.run()
        finally:
            self.in_flight -= 1
            watcher.cancel()
            self._metrics.ended(call.path, exchange.status, monotonic() - exchange.began)

    def pick(self, call: Call, excluded: set[str]) -> Pick | None:
        if call.path in STREAMED:
            return self._fleet.pick(call.affinity, excluded)
        any_one = sorted(self._fleet.routable(excluded), key=lambda c: (c.outstanding, c.key))
        return Pick(any_one[0].key) if any_one else None

    def attempt(self, call: Call, pick: Pick, signal: Signal) -> Attempt:
        if pick.decode is not None and self._key is None:
            raise Unavailable(
                "prefill and decode groups take signed requests only", hint="set keys_dir"
            )
        return Attempt(self._fleet, call, pick, self._key, signal)

    def nothing_ready(self) -> PdsError:
        return Unavailable(self._fleet.shortage(), retry_after=1)

    def first_byte(self, call: Call, seconds: float) -> None:
        self._metrics.first_byte(call.path, seconds)

    def failed(self, call: Call, failure: Failure, again: bool) -> None:
        self._metrics.failed(failure.status, again)
        logger.warning(
            "an attempt failed",
            extra={
                "request_id": call.request_id,
                "status": failure.status,
                "backend": failure.blamed,
                "again": again,
                "answer": failure.body[:300].decode(errors="replace"),
            },
        )

    def settle(self, side: Side) -> None:
        side.settle(self._fleet)

    @property
    def attempts(self) -> int:
        return self._config.attempts


class _Exchange:
    """One call under way."""

    def __init__(
        self, relay: Relay, call: Call, send: Send, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self._relay = relay
        self._call = call
        self._send = send
        self._headers = headers
        self._signal = Signal()
        self._gone = False
        self.began = monotonic()
        self.status = 499
        """What the client got; 499: it left before anything."""

    async def watch(self, receive: Receive) -> None:
        """Notice that the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._signal.set()

    async def run(self) -> None:
        excluded: set[str] = set()
        failure: Failure | None = None
        for left in reversed(range(self._relay.attempts)):
            pick = self._relay.pick(self._call, excluded)
            if pick is None:
                break
            try:
                attempt = self._relay.attempt(self._call, pick, self._signal)
            except Unavailable as error:
                await self._error(error)
                return
            try:
                failure = await self._opened(attempt)
                if failure is None:
                    await self._answer(attempt)
                    return
            finally:
                attempt.close()
            self._relay.failed(self._call, failure, again=failure.retry and left > 0)
            if not failure.retry:
                break
            excluded.add(failure.blamed)
        if failure is None:
            await self._error(self._relay.nothing_ready())
        else:
            await self._whole(failure.status, failure.body, failure.headers)

    async def _opened(self, attempt: Attempt) -> Failure | None:
        """Wait until the attempt has something for the client, failed, or the client is gone."""
        while not self._gone:
            attempt.collect()
            if failure := attempt.failure():
                return failure
            if attempt.answering():
                return None
            await self._signal.wait()
        return None

    async def _answer(self, attempt: Attempt) -> None:
        if self._gone:
            return
        if self._call.stream:
            await self._stream(attempt)
            return
        reply = attempt.last.reply
        kind = (b"content-type", reply.headers.get(b"content-type", b"application/json"))
        await self._whole(200, bytes(attempt.last.body), (kind,))

    async def _stream(self, attempt: Attempt) -> None:
        self.status = 200
        self._relay.first_byte(self._call, monotonic() - self.began)
        headers = [*EVENT_STREAM, *self._headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        forward = Forward(self._send, self._signal.set)
        for side in attempt.sides:
            failure = await self._forward(attempt, side, forward)
            if self._gone:
                return
            self._relay.settle(side)
            if failure is not None:
                self._relay.failed(self._call, failure, again=False)
                self.status = failure.status
                await self._body(error_event(failure.body), more=False)
                return
        await self._body(forward.events.rest(), more=False)

    async def _forward(self, attempt: Attempt, side: Side, forward: Forward) -> Failure | None:
        """One side's body to the client, up to its end."""
        reply = side.reply
        while not self._gone:
            if reply.status == 200 and reply.sink is None:
                forward.pause = reply.pause
                reply.pour(forward.push)
            if forward.held:
                await forward.flush()
                reply.resume()
                continue
            attempt.collect()
            if reply.over:
                return attempt.failure_of(side)
            await self._signal.wait()
        return None

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _whole(self, status: int, body: bytes, headers: Headers) -> None:
        self.status = status
        await answer(self._send, status, body, [*headers, *self._headers])

    async def _error(self, error: PdsError) -> None:
        await answer_error(self._send, error, self._headers)
