"""The edge between a session and HTTP: waits for tokens, writes bytes, sees a client leave."""

import asyncio
import logging
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pds_engine.errors import ClientGone, PdsError
from pds_engine.messages import Failed, Token
from pds_engine.server.answers import DONE, AnswerFormat, broken_off, server_sent
from pds_engine.server.errors import RequestFailed, http_error
from pds_engine.server.inbox import Inbox
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.server.session import ChoiceEvent, Session

_LONG = 256
"""Tokens of an answer, the prompt's scores included, from which its JSON is made in a thread."""
_log = logging.getLogger("pds.server")
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies hold events back otherwise
)


async def respond(
    scheduler: SchedulerClient, session: Session, answer: AnswerFormat, request: Request
) -> Response:
    """Run a job and answer it. A stream's status is known with its first token.

    Raises:
        PdsError: it failed before anything was sent.
    """
    run, job = RunningJob(scheduler, session, answer, request), session.job
    try:
        first = await run.next()
        if job.stream:
            return EventStreamResponse(run, first)
        events = first
        while not run.session.done:
            events += await run.next()
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
        self.path = request.url.path
        self._started = scheduler.clock()
        self._last_at = [self._started] * len(job.submits)
        self._failed: RequestFailed | None = None
        self._inbox = scheduler.open(job.submits)
        self._watch = asyncio.create_task(_watch(request.receive, self._inbox))
        scheduler.metrics.prompt_tokens.inc(job.prompt_tokens)

    async def next(self) -> list[ChoiceEvent]:
        """The events of tokens that have come: of a slice of them, where many have.

        Raises:
            RequestFailed: the scheduler gave a choice up, and with it the request.
            ClientGone, ClientSlow, Unavailable: see Inbox.take.
        """
        if self._failed is not None:
            raise self._failed
        events: list[ChoiceEvent] = []
        came = False
        for choice, message in await self._inbox.take():
            if isinstance(message, Failed):
                self.scheduler.close(message.request_id, cancel=False)
                self._failed = RequestFailed(message)
                break
            came = True
            events += self._feed(choice, message)
        sent = events or (came and self.job.journal)  # a journal names tokens without text, too
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

    def _feed(self, choice: int, token: Token) -> list[ChoiceEvent]:
        if not self.session.is_open(choice):
            return []
        self._measure(choice, token)
        events, cancel = self.session.feed(choice, token)
        if not self.session.is_open(choice):
            self.scheduler.close(self.job.submits[choice].request_id, cancel=cancel)
        return events

    def _measure(self, choice: int, token: Token) -> None:
        now, metrics = self.scheduler.clock(), self.scheduler.metrics
        metrics.output_tokens.inc()
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = self._run
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            events = self._first
            while True:
                if data := await _made(events, self._spelt):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if run.session.done:
                    break
                events = await run.next()
            await send({"type": "http.response.body", "body": self._end()})
        except ClientGone:
            _log.info("the client left", extra={"request_id": run.job.id})
        except PdsError as error:
            await send(self._broken(error))
        except Exception as error:  # a fault of ours ends this stream, with an error
            _log.exception("a stream failed", extra={"request_id": run.job.id})
            await send(self._broken(error))
        finally:
            run.close()

    def _broken(self, error: Exception) -> Message:
        """The last event: the status was sent long ago. No [DONE] follows."""
        status, error_object, _ = http_error(error)
        content = broken_off(self._run.job, status, error_object)
        return {"type": "http.response.body", "body": content}

    def _spelt(self, events: list[ChoiceEvent]) -> bytes:
        job, answer = self._run.job, self._run.answer
        return b"".join(server_sent(job, event, answer.chunk(event)) for event in events)

    def _end(self) -> bytes:
        run = self._run
        if run.job.first_only:
            return b""
        if not run.job.include_usage:
            return DONE
        return b"data: %s\n\n%s" % (run.answer.usage(run.session.usage()), DONE)


async def _made(events: list[ChoiceEvent], make: Callable[[list[ChoiceEvent]], bytes]) -> bytes:
    """The bytes of `events`."""
    size = sum(1 + len(one.event.prompt) for one in events)
    return await asyncio.to_thread(make, events) if size > _LONG else make(events)


async def _watch(receive: Receive, inbox: Inbox) -> None:
    """Wait for the client to leave; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.fail(ClientGone("the client closed its connection"))
