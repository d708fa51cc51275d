"""The router's HTTP surface.

Relayed routes go straight from the server to the relay, since each layer of a framework costs every
event of every stream; all else is FastAPI.
"""

from collections.abc import Mapping, MutableMapping
from importlib import resources
from time import monotonic, time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from pds_engine import body
from pds_engine.body import Receive
from pds_engine.errors import BodyTooLarge, ClientGone, NoRoute, PdsError
from pds_engine.room import Room, Share
from pds_engine.router.answers import Send, answer_error, error_body
from pds_engine.router.auth import ApiKeys
from pds_engine.router.backends import Backend, Fleet
from pds_engine.router.call import STREAMED, Call, plain_call, read_call
from pds_engine.router.config import RouterConfig
from pds_engine.router.discovery import Discovery
from pds_engine.router.keyring import Keyring
from pds_engine.router.metrics import RouterMetrics
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
"""These need an API key when there are keys."""
OBSERVED = frozenset({"/metrics", "/healthz", "/readyz", "/pds/backends"})
"""What the metrics port answers."""


class Router:
    """One router: its parts, and the ASGI application that they make."""

    def __init__(self, config: RouterConfig, keys: Keyring | None = None) -> None:
        self.config = config
        self.fleet = Fleet(config, keys)
        self.metrics = RouterMetrics(self.fleet)
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
            # The unread part of the body would look like the next request.
            await answer_error(send, error, [(b"connection", b"close")])
            return
        await self._surface(scope, receive, send)

    async def _relay(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method != RELAYED[path]:
            wrong = f"{path} takes {RELAYED[path]}, not {method}"
            raise NoRoute(wrong, 405, headers={"allow": RELAYED[path]})
        with self.relay.admitted(), self._room.share() as share:
            call = await self._read(scope, receive, share)
            closing = [(b"connection", b"close")] if self.leaving else []
            await self.relay.serve(call, receive, send, closing)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive, share: Share) -> Call:
        headers, path = scope["headers"], scope["path"]
        data = await body.read(receive, self._bounds(headers), share)
        if (kind := STREAMED.get(path)) is not None:
            peeked = await self._peeker.peek(data, kind)
            policy, longest = self.config.policy, self.fleet.longest
            return read_call(
                path, headers, data, peeked, now=time(), policy=policy, longest=longest
            )
        return plain_call(scope["method"], path, headers, data, now=time())

    def _bounds(self, headers: list[tuple[bytes, bytes]]) -> body.Bounds:
        """What a body with these headers may take. Raises BodyTooLarge where they say too much."""
        most, seconds = self.config.max_body_bytes, self.config.body_timeout
        length = dict(headers).get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            raise BodyTooLarge(f"the body has {int(length)} bytes, the bound is {most}")
        return body.Bounds(
            size=most,
            seconds=seconds,
            too_large=f"the body has more than {most} bytes",
            too_late=f"the body did not come within {seconds:g} seconds",
        )

    async def observed(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The application of the metrics port: it answers the OBSERVED paths and no others."""
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
            "startup": (state and state.startup) or {},
        }


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
    async def not_found(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path, request.method
        fault = NoRoute(
            f"{method} {path}: {error.detail}",
            error.status_code,
            hint="see /v1/models, /v1/chat/completions",
        )
        headers = dict(error.headers or {})
        return Response(error_body(fault), fault.status, headers, media_type="application/json")

    return app
