"""From one client's request to its answer: pairs are tried, bytes are forwarded as they come.

Before the first byte, another pair replaces one that fails. A stream that breaks off later goes on
elsewhere (`stream`).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from pds_engine.body import Receive
from pds_engine.errors import Overloaded, PdsError, Unavailable
from pds_engine.router.answers import Headers, Send, answer, answer_error
from pds_engine.router.attempt import Attempt, AttemptFailure
from pds_engine.router.backends import Fleet
from pds_engine.router.call import Call
from pds_engine.router.client import Client
from pds_engine.router.config import RouterConfig
from pds_engine.router.metrics import RouterMetrics
from pds_engine.router.pairs import Pairs
from pds_engine.router.stream import EVENT_STREAM, RelayedStream


class Relay:
    """Answers the calls of one router."""

    def __init__(self, config: RouterConfig, fleet: Fleet, metrics: RouterMetrics) -> None:
        self._bound = config.max_in_flight
        self._pairs = Pairs(config, fleet, metrics)
        self._metrics = metrics
        self.in_flight = 0
        self._ended = monotonic()

    @property
    def idle_seconds(self) -> float:
        """For how long no call has been under way."""
        return 0.0 if self.in_flight else monotonic() - self._ended

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One more request is open, from before its body is read.

        Raises:
            Overloaded: the client may come again in a second.
        """
        if self.in_flight >= self._bound:
            raise Overloaded(
                f"{self.in_flight} requests are open, which is this router's bound", retry_after=1
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._ended = monotonic()

    async def serve(self, call: Call, receive: Receive, send: Send, headers: Headers = ()) -> None:
        """Answer `call`; `headers` are added to the response."""
        client = Client(send)
        relayed = _RelayedCall(
            self._pairs, call, client, [(b"x-request-id", call.request_id.encode()), *headers]
        )
        watcher = asyncio.get_running_loop().create_task(client.watch(receive))
        try:
            await relayed.run()
        finally:
            watcher.cancel()
            self._metrics.ended(call.path, relayed.status, monotonic() - relayed.began)


class _RelayedCall:
    """One call under way."""

    def __init__(
        self, pairs: Pairs, call: Call, client: Client, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self._pairs = pairs
        self._call = call
        self._client = client
        self._headers = headers
        self.began = monotonic()
        self.status = 499
        """What the client got; 499: it left before anything."""

    async def run(self) -> None:
        excluded: set[str] = set()
        failure: AttemptFailure | None = None
        left = self._pairs.config.attempts
        while left:
            pick = self._pairs.pick(self._call, excluded)
            if pick is None:
                break
            try:
                attempt = self._pairs.attempt(self._call, pick, self._client)
            except Unavailable as error:
                await self._error(error)
                return
            try:
                failure = await attempt.opened()
                if failure is None:
                    await self._answer(attempt)
                    return
            finally:
                attempt.close()
            left -= not (failure.turned_away or failure.untaken)
            again = failure.retry and left > 0
            self._pairs.failed(self._call, failure, "opening", again)
            if not failure.retry:
                break
            if not left and failure.begun:
                self._pairs.spent(self._call, failure, self._pairs.config.attempts)
            excluded.add(failure.blamed)
        if failure is None:
            await self._error(self._pairs.nothing_ready())
        else:
            await self._whole(failure.status, failure.body, failure.headers)

    async def _answer(self, attempt: Attempt) -> None:
        if self._client.gone:
            return
        if self._call.stream:
            await self._stream(attempt)
            return
        reply = attempt.last.reply
        kind = (b"content-type", reply.headers.get(b"content-type", b"application/json"))
        await self._whole(200, bytes(attempt.last.body), (kind,))

    async def _stream(self, attempt: Attempt) -> None:
        self.status = 200
        self._pairs.metrics.first_byte(self._call.path, monotonic() - self.began)
        headers = [*EVENT_STREAM, *self._headers]
        await self._client.send({"type": "http.response.start", "status": 200, "headers": headers})
        self.status = await RelayedStream(self._pairs, self._call, self._client).run(attempt)

    async def _whole(self, status: int, body: bytes, headers: Headers) -> None:
        self.status = status
        await answer(self._client.send, status, body, [*headers, *self._headers])

    async def _error(self, error: PdsError) -> None:
        self.status = error.status
        await answer_error(self._client.send, error, self._headers)
