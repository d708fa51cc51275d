"""One stream to one client: the bytes of a pair, and of others where that one breaks off.

A stream is the prefill group's bytes up to its end of file, then the decode group's, which wait in
their socket until then. A lost connection breaks it off, or an engine that gives it up. Then it
migrates: the request goes to another pair with the tokens that the client has, which the journal
names (`sse`), and the new pair's bytes go on where the others ended.
"""

from time import monotonic

from pds_engine.router.answers import Headers, error_event
from pds_engine.router.attempt import Attempt, AttemptFailure, Side
from pds_engine.router.backends import GroupState
from pds_engine.router.call import Call, resumed
from pds_engine.router.client import Client
from pds_engine.router.forward import Forward
from pds_engine.router.pairs import Pairs

EVENT_STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
LOOK_SECONDS = 1.0
"""How long a stream waits for a change in the fleet before it tries again all the same."""
QUIET_SECONDS = 10.0
"""A stream that waits sends something so often: proxies close silent connections."""
WAITING = b": waiting\n\n"
"""A comment, which clients pass over."""


class RelayedStream:
    """The answer to `call`, from its first byte on."""

    def __init__(self, pairs: Pairs, call: Call, client: Client) -> None:
        self._pairs = pairs
        self._call = call
        self._client = client
        self._forward = Forward(client.send, client.wakeup.set)
        self._journal = self._forward.events.journal
        self._left = pairs.config.migrations
        """How often it may still go on elsewhere."""
        self._spent = ""
        """Why no pair may be asked any more; "" while one may."""

    async def run(self, attempt: Attempt) -> int:
        """Forward it to its end; the status for the metrics: 200 but for streams that broke."""
        like = attempt.last.backend.state
        try:
            while True:
                failure = await self._give(attempt)
                if self._client.gone:
                    return 200
                if failure is None:
                    await self._client.give(self._forward.events.rest(), more=False)
                    return 200
                attempt.close()
                self._forward.events.cut()
                problem = self._stuck(failure)
                self._pairs.failed(self._call, failure, "streaming", again=not problem)
                if not problem:
                    self._left -= not failure.preempted
                    broke, next_ = monotonic(), await self._successor(failure, like)
                    seconds = monotonic() - broke
                    if isinstance(next_, Attempt):
                        attempt = next_
                        self._went_on(failure, seconds)
                        continue
                    failure = next_
                    problem = self._spent or f"no other pair took it over in {seconds:.0f} s"
                note = "" if failure.late else problem
                await self._client.give(error_event(failure.body, note), more=False)
                return failure.status
        finally:
            attempt.close()

    def _stuck(self, failure: AttemptFailure) -> str:
        """Why the stream cannot go on elsewhere; "" when it can."""
        if not failure.retry:
            return "no other pair would do better"
        if not self._journal.complete:
            return "a stream of several choices cannot go on elsewhere"
        if not self._left and not failure.preempted:
            return self._give_up(failure)
        return ""

    def _give_up(self, failure: AttemptFailure) -> str:
        """As many pairs broke it off as may: the words for its client."""
        bound = self._pairs.config.migrations
        if failure.begun:
            self._pairs.spent(self._call, failure, bound + 1)
        self._spent = f"it went on elsewhere {bound} times already"
        return self._spent

    async def _successor(
        self, failure: AttemptFailure, like: GroupState | None
    ) -> Attempt | AttemptFailure:
        """Another pair that goes on, or why there is none; waits a while for one.

        A preempted stream returns to the group that preempted it if there is no other, and waits
        for room as long as there are groups. A pair that fails with the stream counts like a
        migration: groups may fail of this stream. A pair out of reach or without room does not.
        """
        call = resumed(self._call, self._journal.ids)
        seconds, preempted = self._pairs.config.resume_seconds, failure.preempted
        until = monotonic() + seconds
        spoke = monotonic()
        excluded = {failure.blamed}
        while True:
            pick = self._pairs.pick(call, excluded, like)
            if pick is None and failure.preempted and excluded:
                excluded.clear()
                continue
            if pick is None:
                if (left := until - monotonic()) <= 0 or self._client.gone:
                    return failure
                excluded.clear()  # what refused may take it a little later
                await self._pairs.fleet.wait_for_change(min(left, LOOK_SECONDS))
                if monotonic() - spoke >= QUIET_SECONDS:
                    spoke = monotonic()
                    await self._client.give(WAITING, more=True)
                continue
            attempt = self._pairs.attempt(call, pick, self._client)
            try:
                failed = await attempt.opened(surely=True)
            except BaseException:
                attempt.close()
                raise
            if failed is None:
                return attempt
            attempt.close()
            again = failed.retry and (self._left > 0 or not failed.begun)
            self._pairs.failed(call, failed, "resuming", again)
            failure = failed
            if not failed.retry:
                return failed
            if not again:
                self._give_up(failed)
                return failed
            self._left -= failed.begun
            if preempted and failed.busy:
                until = monotonic() + seconds
            excluded.add(failed.blamed)

    def _went_on(self, failure: AttemptFailure, seconds: float) -> None:
        if not self._client.gone:
            self._pairs.migrated(self._call, failure, len(self._journal.ids), seconds)

    async def _give(self, attempt: Attempt) -> AttemptFailure | None:
        """Send an attempt's bytes to the client, one side after the other, to their end."""
        for side in attempt.sides:
            failure = await self._side(attempt, side)
            if self._client.gone:
                return None
            attempt.settle(side)
            if failure is not None:
                return failure
        return None

    async def _side(self, attempt: Attempt, side: Side) -> AttemptFailure | None:
        reply, forward = side.reply, self._forward
        while not self._client.gone:
            if reply.status == 200 and reply.sink is None:
                forward.pause = reply.pause
                reply.pour(forward.push)
            if forward.held:
                await forward.flush()
                reply.resume()
                continue
            attempt.collect()
            if reply.over:
                if forward.events.failed is not None:
                    return attempt.gave_up(side, *forward.events.failed)
                return attempt.failure_of(side)
            await self._client.wakeup.wait()
        return None
