"""The edge between a session and HTTP: waits for tokens, writes bytes, sees a client leave."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pds_engine.errors import ClientGone, PdsError
from pds_engine.messages import Failed, Token
from pds_engine.server.answers import DONE, AnswerFormat, broken_off, server_sent
from pds_engine.server.errors import RequestFailed, http_error
from pds_engine.server.inbox import SLICE, Inbox
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.server.session import ChoiceEvent, Session
from pds_engine.suspended import Suspended, begun
from pds_engine.wakeup import Wakeup

_LONG = 256
"""Tokens of an answer, the prompt's scores included, from which its JSON is made in a thread."""
Sending = Coroutine[Any, Any, None]
_log = logging.getLogger("pds.server")
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies hold events back otherwise
)


Sink = Callable[[list[ChoiceEvent]], bool]
"""Takes events from within the callback of the scheduler's socket; whether it can take more."""


async def respond(
    scheduler: SchedulerClient, session: Session, answer: AnswerFormat, request: Request
) -> Response:
    """Run a job and answer it. A stream's status is known with its first token.

    Raises:
        PdsError: it failed before anything was sent.
    """
    run, job = RunningJob(scheduler, session, answer, request), session.job
    try:
        events = await run.next()
        if job.stream:
            return EventStreamResponse(run, events)

        def keep(more: list[ChoiceEvent]) -> bool:
            events.extend(more)
            return True

        while not session.done:
            keep(await run.next(keep))
    except BaseException:
        run.close()
        raise
    run.close()
    if job.first_only:
        return Response(b"")
    content = await _made(events, lambda all_: answer.body(all_, session.usage()))
    return Response(content, media_type="application/json")


class RunningJob:
    """One job at work, from its submission until `close`."""

    def __init__(
        self, scheduler: SchedulerClient, session: Session, answer: AnswerFormat, request: Request
    ) -> None:
        self.scheduler, self.session, self.answer = scheduler, session, answer
        self.job = job = session.job
        self._last_at = [scheduler.clock()] * len(job.submits)
        self._failed: RequestFailed | None = None
        self._wakeup = Wakeup()
        self._sink: Sink | None = None
        self._kept: list[ChoiceEvent] | None = None
        """Events that a callback has left to `next`."""
        self._fault: Exception | None = None
        """What went wrong in a callback, for `next` to raise."""
        self._inbox = scheduler.open(job.submits)
        self._inbox.notify = self._came
        self._watch = asyncio.create_task(_watch(request.receive, self._inbox))
        scheduler.metrics.prompt_tokens.inc(job.prompt_tokens)

    async def next(self, sink: Sink | None = None) -> list[ChoiceEvent]:
        """The events of tokens that have come: of a slice of them, where many have.

        With `sink` it goes on waiting, and `sink` has the events as their tokens come, until it
        takes no more, or the job is done or has failed: no task wakes up for each token.

        Raises:
            RequestFailed: the scheduler gave a choice up, and with it the request.
            ClientGone, ClientSlow, Unavailable: see Inbox.take.
        """
        if self._failed is not None:
            raise self._failed
        if self._inbox.waiting:
            await asyncio.sleep(0)  # nothing below waits, so this gives others their turn
        self._sink = sink
        while not self._inbox.waiting and self._kept is None:
            await self._wakeup.wait()
        self._sink = None
        if self._fault is not None:
            raise self._fault
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        return self._taken()

    def _came(self) -> None:
        """Something is in the inbox: in the callback of the scheduler's socket."""
        sink = self._sink
        if sink is None or len(self._inbox) > SLICE:
            self._wakeup.set()
            return
        events: list[ChoiceEvent] = []
        try:
            events = self._taken()
            if not self.session.done and self._failed is None and _size(events) <= _LONG:
                if not events or sink(events):
                    return
                events = []
        except Exception as error:  # others' tokens are in the same callback
            self._fault = error
        self._sink, self._kept = None, events
        self._wakeup.set()

    def _taken(self) -> list[ChoiceEvent]:
        """What comes of a slice of the inbox."""
        events: list[ChoiceEvent] = []
        tokens, now = 0, self.scheduler.clock()
        for choice, message in self._inbox.take():
            if isinstance(message, Failed):
                self.scheduler.close(message.request_id, cancel=False)
                self._failed = RequestFailed(message)
                break
            if not self.session.is_open(choice):
                continue
            tokens += 1
            self._measure(choice, message, now)
            found, cancel = self.session.feed(choice, message)
            events += found
            if not self.session.is_open(choice):
                self.scheduler.close(message.request_id, cancel=cancel)
        self.scheduler.metrics.output_tokens.inc(tokens)
        sent = events or (tokens and self.job.journal)  # a journal names tokens without text, too
        if self._failed is not None and not sent:
            raise self._failed
        return events  # what came before a failure is sent before it

    def close(self) -> None:
        """Let go of all choices; those still open are cancelled."""
        self._watch.cancel()
        for choice, submit in enumerate(self.job.submits):
            self.scheduler.close(submit.request_id, cancel=self.session.is_open(choice))
        if self.session.done:
            usage = self.session.usage()
            self.scheduler.metrics.cached_tokens.inc(usage.cached_tokens)

    def _measure(self, choice: int, token: Token, now: float) -> None:
        metrics = self.scheduler.metrics
        first = token.index == len(self.job.submits[choice].output_ids)
        series = metrics.ttft if first else metrics.gap
        series.observe(now - self._last_at[choice])
        self._last_at[choice] = now


class EventStreamResponse(Response):
    """Server-sent events: one write for all that tokens have released since the last write."""

    def __init__(self, run: RunningJob, first: list[ChoiceEvent]) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEADERS)
        self._run = run
        self._first = first
        self._send: Send | None = None
        self._slow: Suspended | None = None
        """A write that waits for the client to read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run, self._send = self._run, send
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            events = self._first
            while not run.session.done:
                if data := await _made(events, self._spelt):
                    await send(_body(data))
                events = await run.next(self._write)
                if self._slow is not None:
                    slow, self._slow = self._slow, None
                    await slow
            data = await _made(events, self._spelt)
            await send({"type": "http.response.body", "body": data + self._end()})
        except ClientGone:
            _log.info("the client left", extra={"request_id": run.job.id})
        except PdsError as error:
            await send(self._broken(error))
        except Exception as error:  # a fault of ours ends this stream, with an error
            _log.exception("a stream failed", extra={"request_id": run.job.id})
            await send(self._broken(error))
        finally:
            run.close()

    def _write(self, events: list[ChoiceEvent]) -> bool:
        """Send from within a callback; False: the client reads too slowly for that."""
        if self._send is not None and (data := self._spelt(events)):
            self._slow = begun(cast(Sending, self._send(_body(data))))
        return self._slow is None

    def _broken(self, error: Exception) -> Message:
        """The last event: the status was sent long ago. No [DONE] follows."""
        status, error_object, _ = http_error(error)
        content = broken_off(self._run.job, status, error_object)
        return {"type": "http.response.body", "body": content}

    def _spelt(self, events: list[ChoiceEvent]) -> bytes:
        job, answer = self._run.job, self._run.answer
        return b"".join([server_sent(job, event, answer.chunk(event)) for event in events])

    def _end(self) -> bytes:
        run = self._run
        if run.job.first_only:
            return b""
        if not run.job.include_usage:
            return DONE
        return b"data: %s\n\n%s" % (run.answer.usage(run.session.usage()), DONE)


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _size(events: list[ChoiceEvent]) -> int:
    return len(events) + sum(len(one.event.prompt) for one in events)


async def _made(events: list[ChoiceEvent], make: Callable[[list[ChoiceEvent]], bytes]) -> bytes:
    """The bytes of `events`."""
    return await asyncio.to_thread(make, events) if _size(events) > _LONG else make(events)


async def _watch(receive: Receive, inbox: Inbox) -> None:
    """Wait for the client to leave; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.fail(ClientGone("the client closed its connection"))
