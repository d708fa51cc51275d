"""The process of the API server: the application of a group's leader."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import zmq
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from pds_engine import wire
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.models.registry import read_spec
from pds_engine.scheduler.request import wanted
from pds_engine.scheduler.settings import Settings
from pds_engine.server.errors import handler
from pds_engine.server.listen import listen
from pds_engine.server.placement import Placement
from pds_engine.server.routes import Route, Routes
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.server.warmed import show_warmup
from pds_engine.text.tokenizer import Tokenizer


class Application(FastAPI):
    """FastAPI, but for the routes that may stream. These are called straight from the server, since
    each layer of a framework costs every event of every stream."""

    def __init__(self, streamed: Mapping[str, Route], **options: Any) -> None:
        super().__init__(**options)
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self._streamed.get(scope["path"])
            if route is not None:
                answer = await route(Request(scope, receive, send))
                await answer(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(
    scheduler: SchedulerClient,
    config: EngineConfig,
    tokenizer: Tokenizer,
    *,
    key: bytes | None = None,
) -> Application:
    """The application; it starts and stops `scheduler` with itself.

    Args:
        key: checks the router's signatures; None refuses every x-pds-* header.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await scheduler.start()
        try:
            yield
            if scheduler.error is None:  # a hand-over outlives its HTTP request
                scheduler.drain(config.kv.lease_seconds)
                await scheduler.drained(config.kv.lease_seconds)
        finally:
            await routes.close()
            await scheduler.stop()

    routes = Routes(scheduler, config, tokenizer, key)
    app = Application(routes.streamed, lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(HTTPException, handler)
    app.add_exception_handler(Exception, handler)
    routes.mount(app)
    return app


def run(
    config: EngineConfig,
    keys: Keys,
    schedulers: Sequence[str],
    incarnation: str,
) -> None:
    """Serve until SIGTERM, which drains, or until the group fails.

    Args:
        schedulers: their ZMQ addresses ("tcp://127.0.0.1:8001"), by dp rank.

    Raises:
        ConfigError: the model's folder or a port cannot be used.
        GroupError: the scheduler was lost; the process must end with a status other than 0.
    """
    tokenizer = Tokenizer(config.model.path)
    context = zmq.Context()
    dp = config.parallelism.dp
    lease = config.kv.lease_seconds if config.role == "prefill" else None
    placement = None
    if dp > 1:
        settings = Settings.of(config, read_spec(config.model.path).window)
        wanting = partial(wanted, settings=settings)
        placement = Placement(dp, wanting, config.scheduler.max_waiting, lease_seconds=lease)
    scheduler = SchedulerClient(
        [partial(wire.AsyncLink, context, address, keys) for address in schedulers],
        group=config.pod.group,
        incarnation=incarnation,
        capacity=config.most_open,
        placement=placement,
        join_timeout=config.join_timeout,
    )
    show_warmup(config, scheduler.metrics.registry)
    key = keys.hmac if config.http.keys_dir else None
    app = create_app(scheduler, config, tokenizer, key=key)
    try:
        listen(app, config.http, scheduler, scheduler.metrics.registry)
    finally:
        context.destroy(linger=0)
    if scheduler.error is not None:
        raise scheduler.error
