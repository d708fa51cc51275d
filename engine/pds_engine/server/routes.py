"""The routes of the API server. Each reads a request, calls the pure modules, and answers."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from pds_engine import body
from pds_engine.config import EngineConfig
from pds_engine.errors import ClientGone, Forbidden, Overloaded, PdsError, Unavailable
from pds_engine.room import Room
from pds_engine.server import headers, job, large, openapi, protocol, state
from pds_engine.server.answers import AnswerFormat
from pds_engine.server.chat import ChatFormat
from pds_engine.server.completion import CompletionFormat
from pds_engine.server.errors import probe_answer, response
from pds_engine.server.job import Job
from pds_engine.server.lanes import Lanes
from pds_engine.server.respond import respond
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.server.session import Session
from pds_engine.server.strict import Body
from pds_engine.signing import key_id
from pds_engine.text.tokenizer import Tokenizer

B = TypeVar("B", bound=Body)
R = TypeVar("R")
Route = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger("pds.server")
BODY_SECONDS = 30.0
"""A body has to come within them."""
_INTERNAL = 64 * 1024
"""Bytes of a body in the router's and the operator's own calls."""
_CLIENT_GONE = 499
"""Nginx's number. It shows in metrics: nobody reads the answer."""


class Routes:
    """The application's handlers; see `app.create_app` for what they are given."""

    def __init__(
        self,
        scheduler: SchedulerClient,
        config: EngineConfig,
        tokenizer: Tokenizer,
        key: bytes | None,
    ) -> None:
        self._scheduler = scheduler
        self._config = config
        self._tokenizer = tokenizer
        self._key = key
        self._limits = large.PromptLimits(
            tokens=config.max_model_len,
            characters=config.max_model_len * tokenizer.longest,
            prompts=config.most_open,
        )
        self._lanes = Lanes(self._limits)
        self._room = Room(config.http.max_held_bytes)
        self._busy = 0
        self._created = int(time.time())

    @property
    def streamed(self) -> Mapping[str, Route]:
        """The routes that may answer with streams, by path; each takes POST."""
        table = {"/v1/completions": self.completions, "/v1/chat/completions": self.chat}
        return {path: self._counted(path, route) for path, route in table.items()}

    def mount(self, app: FastAPI) -> None:
        """Add all routes to `app`."""
        for path, route in self.streamed.items():
            app.add_route(path, route, methods=["POST"])
        table: list[tuple[str, str, Route]] = [
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{name:path}", self.model),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("GET", "/tokenizer_info", self.tokenizer_info),
            ("GET", "/version", self.version),
            ("GET", "/openapi.json", self.openapi),
            ("GET", "/ping", self.healthz),
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
            ("GET", "/pds/state", self.state),
            ("POST", "/pds/drain", self.drain),
            ("POST", "/pds/peers/gone", self.gone),
        ]
        for method, path, route in table:
            app.add_route(path, self._counted(path, route), methods=[method])

    async def close(self) -> None:
        """End what reads large bodies."""
        await self._lanes.close()

    # ---- OpenAI's ---------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, "completion", self._completion, CompletionFormat)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, "chat", self._chat, ChatFormat)

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        job.check_model(request.path_params["name"], self._config)
        return _json(self._card())

    async def _generate(
        self,
        request: Request,
        form: large.Form,
        prepare: Callable[[bytes, headers.InternalHeaders], Job],
        answer: Callable[[Job], AnswerFormat],
    ) -> Response:
        internal = headers.read(self._signed(request), self._config.role, request.headers)
        limit = self._limits.prompts
        if self._busy >= limit:
            raise Overloaded(f"{limit} requests are being read or answered", retry_after=1)
        self._busy += 1
        try:
            session = await self._read(request, form, lambda body: Session(prepare(body, internal)))
            if (problem := self._unready()) is not None:
                raise Unavailable(problem, retry_after=1)
            return await respond(self._scheduler, session, answer(session.job), request)
        finally:
            self._busy -= 1

    def _completion(self, data: bytes, internal: headers.InternalHeaders) -> Job:
        parsed = self._parse(protocol.CompletionRequest, data)
        prompts = job.text_prompts(parsed, self._tokenizer, self._config.max_model_len)
        return job.make(parsed, prompts, self._tokenizer, self._config, internal)

    def _chat(self, data: bytes, internal: headers.InternalHeaders) -> Job:
        parsed = self._parse(protocol.ChatRequest, data)
        prompt = job.chat_prompt(parsed, self._tokenizer, self._config.max_model_len)
        return job.make(parsed, [prompt], self._tokenizer, self._config, internal)

    # ---- vLLM's -----------------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        return await self._answered(request, "tokenize", self._tokenized)

    def _tokenized(self, data: bytes) -> bytes:
        tokenizer, most = self._tokenizer, self._config.max_model_len
        if large.has_messages(data):
            chat = self._parse(protocol.TokenizeChat, data)
            ids, named = job.chat_prompt(chat, tokenizer, most), chat.return_token_strs
        else:
            text = self._parse(protocol.TokenizeText, data)
            special = text.add_special_tokens is not False
            ids = job.encode(text.prompt, tokenizer, most, "prompt", special)
            named = text.return_token_strs
        names = [tokenizer.token(id) for id in ids] if named else None
        return msgspec.json.encode(
            {"count": len(ids), "max_model_len": most, "tokens": ids, "token_strs": names}
        )

    async def detokenize(self, request: Request) -> Response:
        return await self._answered(request, "detokenize", self._detokenized)

    def _detokenized(self, data: bytes) -> bytes:
        ids = self._parse(protocol.DetokenizeRequest, data).tokens
        job.check_length(ids, self._config.max_model_len, "tokens")
        job.check_ids(ids, self._tokenizer.vocabulary, "tokens")
        return msgspec.json.encode({"prompt": self._tokenizer.decode(ids, skip_special=False)})

    async def _answered(
        self, request: Request, form: large.Form, answer: Callable[[bytes], bytes]
    ) -> Response:
        content = await self._read(request, form, answer)
        return Response(content, media_type="application/json")

    async def tokenizer_info(self, request: Request) -> Response:
        template = self._tokenizer.template
        return _json(
            {
                **self._tokenizer.settings,
                **{
                    name: self._tokenizer.special(name) or None
                    for name in ("bos_token", "eos_token", "pad_token", "unk_token")
                },
                "chat_template": template.source if template else None,
            }
        )

    async def version(self, request: Request) -> Response:
        return _json({"version": version("pdserving")})

    async def openapi(self, request: Request) -> Response:
        return Response(openapi.document(), media_type="application/json")

    # ---- the group's ------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        scheduler = self._scheduler
        error = scheduler.error.message if scheduler.error else None
        age = scheduler.clock() - scheduler.state_at
        timeout = self._config.scheduler.step_timeout
        return probe_answer(state.unhealthy(scheduler.state, age, timeout, error))

    async def readyz(self, request: Request) -> Response:
        return probe_answer(self._unready())

    async def metrics(self, request: Request) -> Response:
        return Response(self._scheduler.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def state(self, request: Request) -> Response:
        self._signed(request)  # optional: a caller that signs learns whether keys and clocks agree
        scheduler = self._scheduler
        return _json(
            state.report(
                scheduler.state,
                self._config,
                incarnation=scheduler.incarnation,
                key_id=None if self._key is None else key_id(self._key),
                in_flight=scheduler.in_flight,
                draining=scheduler.draining,
                error=scheduler.error.message if scheduler.error else None,
                dp_ranks=scheduler.dp_ranks,
            )
        )

    async def drain(self, request: Request) -> Response:
        self._internal(request)
        parsed = self._parse(protocol.DrainRequest, await self._internal_body(request))
        self._scheduler.drain(parsed.deadline_seconds)
        return _json({"draining": True, "in_flight": self._scheduler.in_flight})

    async def gone(self, request: Request) -> Response:
        self._internal(request)
        parsed = self._parse(protocol.GoneRequest, await self._internal_body(request))
        self._scheduler.peer_gone(parsed.incarnation)
        return _json({})

    # ---- shared -----------------------------------------------------------------------------

    def _counted(self, path: str, route: Route) -> Route:
        """`route` with its errors answered, and its answers counted."""

        async def counted(request: Request) -> Response:
            try:
                answer = await route(request)
            except ClientGone:
                answer = Response(status_code=_CLIENT_GONE)
            except PdsError as error:
                answer = response(error)
            except Exception as error:  # a fault of ours ends this request and no other
                _log.exception("%s failed", path)
                answer = response(error)
            self._scheduler.metrics.requests.labels(path, answer.status_code).inc()
            return answer

        return counted

    async def _read(self, request: Request, form: large.Form, work: Callable[[bytes], R]) -> R:
        """The result of `work` on the body, which is then forgotten."""
        bounds = _bounds(self._config.http.max_body_bytes)
        with self._room.share() as share:
            return await self._lanes.read(
                await body.read(request.receive, bounds, share), form, work
            )

    async def _internal_body(self, request: Request) -> bytes:
        with self._room.share() as share:
            return await body.read(request.receive, _bounds(_INTERNAL), share)

    def _parse(self, kind: type[B], data: bytes) -> B:
        parsed = large.parse(kind, data, self._limits)
        job.check_model(getattr(parsed, "model", None), self._config)
        return parsed

    def _signed(self, request: Request) -> bool:
        path = request.scope["path"]  # request.url would be parsed for it
        return headers.check(self._key, request.method, path, request.headers, time.time())

    def _internal(self, request: Request) -> None:
        if not self._signed(request):
            raise Forbidden("this call is for the router and the operator, who sign it")

    def _unready(self) -> str | None:
        if self._scheduler.error is not None:
            return self._scheduler.error.message
        return state.unready(self._scheduler.state, self._config)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._config.model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "pdserving",
            "root": self._config.model.name,
            "parent": None,
            "max_model_len": self._config.max_model_len,
        }


def _bounds(size: int) -> body.Bounds:
    return body.Bounds(
        size=size,
        seconds=BODY_SECONDS,
        too_large=f"the body is above {size} bytes",
        too_late=f"the body did not come within {BODY_SECONDS:g} s",
        patience=8,
    )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
