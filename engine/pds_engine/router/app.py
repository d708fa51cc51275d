"""The router's HTTP surface.

Relayed routes go straight from the server to the relay, since each layer of a framework costs every
event of every stream; all else is FastAPI.
"""

import asyncio
from collections.abc import Mapping, MutableMapping
from importlib import resources
from time import monotonic, time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from pds_engine.errors import BodyTimeout, BodyTooLarge, InvalidRequest, PdsError
from pds_engine.room import Room, Share
from pds_engine.router.answers import JSON, Receive, Send, answer, answer_error, error_body
from pds_engine.router.auth import ApiKeys
from pds_engine.router.backends import Backend, Fleet
from pds_engine.router.call import STREAMED, Call, plain_call, read_call
from pds_engine.router.config import RouterConfig
from pds_engine.router.discovery import Discovery
from pds_engine.router.keyring import Keyring
from pds_engine.router.metrics import Metrics
from pds_engine.router.peek import Peeker
from pds_engine.router.relay import Relay

RELAYED: Mapping[str, str] = {
    **dict.fromkeys(STREAMED, "POST"),
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/tokenizer_info": "GET",
    "/openapi.json": "GET",
}
"""Answered by engines, and the method that each one takes."""
GUARDED = frozenset({*RELAYED, "/v1/models"})
"""What asks for an API key when there are keys."""
OBSERVED = frozenset({"/metrics", "/healthz", "/readyz", "/pds/backends"})
"""What the metrics port answers."""


class ClientGone(Exception):
    """The client left before its body was whole; there is nobody to answer."""


class Router:
    """One router: its parts, and the ASGI application that they make."""

    def __init__(self, config: RouterConfig, keys: Keyring | None = None) -> None:
        self.config = config
        self.fleet = Fleet(config, keys)
        self.metrics = Metrics(self.fleet)
        self.relay = Relay(config, self.fleet, self.metrics)
        self.discovery = Discovery(config, self.fleet)
        self.leaving = False
        """SIGTERM came: not ready any more, and connections close after their answer."""
        self._keys = ApiKeys(config.auth.secret_dir) if config.auth else None
        self._peeker = Peeker(config.policy)
        self._room = Room(config.max_held_bytes)
        self._surface = surface(self)

    async def close(self) -> None:
        """End what the router started, when no request is left."""
        await self.discovery.close()
        await self._peeker.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._surface(scope, receive, send)
            return
        path = scope["path"]
        try:
            if self._keys is not None and path in GUARDED:
                self._keys.check(dict(scope["headers"]))
            if path in RELAYED:
                await self._relay(scope, receive, send)
                return
        except ClientGone:
            return
        except PdsError as error:
            # What of the body was not read would be taken for the next request.
            await answer_error(send, error, [(b"connection", b"close")])
            return
        await self._surface(scope, receive, send)

    async def _relay(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method != RELAYED[path]:
            wrong = InvalidRequest(f"{path} takes {RELAYED[path]}, not {method}")
            allow = (b"allow", RELAYED[path].encode())
            await answer(send, 405, error_body(wrong), [JSON, allow, (b"connection", b"close")])
            return
        with self.relay.admitted(), self._room.share() as share:
            call = await self._read(scope, receive, share)
            closing = [(b"connection", b"close")] if self.leaving else []
            await self.relay.serve(call, receive, send, closing)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive, share: Share) -> Call:
        headers, path = scope["headers"], scope["path"]
        try:
            async with asyncio.timeout(self.config.body_timeout):
                body = await read_body(headers, receive, self.config.max_body_bytes, share)
        except TimeoutError as error:
            seconds = self.config.body_timeout
            raise BodyTimeout(f"the body did not come within {seconds:g} seconds") from error
        if (kind := STREAMED.get(path)) is not None:
            peeked = await self._peeker.peek(body, kind)
            policy, longest = self.config.policy, self.fleet.longest
            return read_call(
                path, headers, body, peeked, now=time(), policy=policy, longest=longest
            )
        return plain_call(scope["method"], path, headers, body, now=time())

    async def observed(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The application of the metrics port: what observers ask for, and nothing else."""
        if scope["type"] == "http" and scope["path"] not in OBSERVED:
            scope = {**scope, "path": "/not-on-this-port"}
        await self._surface(scope, receive, send)

    def described(self, backend: Backend) -> dict[str, object]:
        """One entry of /pds/backends."""
        reason = self.fleet.reason(backend)
        state = backend.state
        return {
            "pod": backend.found.pod,
            "uid": backend.found.key,
            "group": backend.group,
            "role": state.role if state else None,
            "incarnation": (state and state.incarnation) or None,
            "revision": (state and state.revision) or None,
            "kv_fingerprint": backend.kv or None,
            "protocol": state.protocol if state else None,
            "key_id": (state and backend.key_id) or None,
            "url": backend.found.url,
            "routable": not reason,
            "reason": reason or "routable",
            "clock_offset": round(backend.clock, 1),
            "circuit": backend.circuit.phase(monotonic()),
            "requests": backend.requests,
            "failures": backend.failures,
            "in_flight": backend.in_flight,
            "outstanding_tokens": backend.outstanding,
        }


async def read_body(
    headers: list[tuple[bytes, bytes]], receive: Receive, bound: int, share: Share
) -> bytes:
    """The whole body, never more than `bound` bytes of it, which are taken of `share`.

    Raises:
        BodyTooLarge, ClientGone
        Overloaded: other bodies leave no room for it.
    """
    length = dict(headers).get(b"content-length", b"")
    if length.isdigit() and int(length) > bound:
        raise BodyTooLarge(f"the body has {int(length)} bytes, the bound is {bound}")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > bound:
            raise BodyTooLarge(f"the body has more than {bound} bytes")
        share.take(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def surface(router: Router) -> FastAPI:
    """The routes that the router answers itself."""
    app = FastAPI(title="PDServing router", docs_url=None, redoc_url=None, openapi_url=None)
    page = resources.files("pds_engine.router").joinpath("chat.html").read_text()
    started = int(time())

    @app.get("/", response_class=HTMLResponse)
    async def chat() -> str:
        return page

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        lengths = [b.state.max_model_len for b in router.fleet if b.state and b.state.max_model_len]
        model = {
            "id": router.config.model,
            "object": "model",
            "created": started,
            "owned_by": "pdserving",
            "max_model_len": min(lengths, default=None),
        }
        return {"object": "list", "data": [model]}

    @app.get("/healthz")
    @app.get("/ping")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        if router.leaving:
            return JSONResponse({"status": "leaving"}, 503)
        if not router.fleet.synced:
            trouble = router.discovery.trouble or "the first list of pods is under way"
            return JSONResponse({"status": "not synced", "reason": trouble}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/pds/backends")
    async def backends() -> dict[str, object]:
        entries = [router.described(backend) for backend in router.fleet]
        return {
            "backends": sorted(entries, key=lambda entry: str(entry["pod"])),
            "synced": router.fleet.synced,
            "trouble": router.discovery.trouble,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(router.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path, request.method
        fault = InvalidRequest(
            f"{method} {path}: {error.detail}", hint="see /v1/models, /v1/chat/completions"
        )
        headers = dict(error.headers or {})
        return Response(
            error_body(fault), error.status_code, headers, media_type="application/json"
        )

    return app
