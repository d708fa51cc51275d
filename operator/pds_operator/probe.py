"""What pods say of themselves over HTTP: leaders' /pds/state and routers' /pds/backends."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from pds_operator import names
from pds_operator.api import TRANSIENT
from pds_operator.facts import engine_state, router_view
from pds_operator.observed import EngineState, RouterView

TIMEOUT = aiohttp.ClientTimeout(total=1.5)
SIGNED_SECONDS = 30


class Prober:
    """Asks pods. Answers are facts of the moment: one that does not come is no answer."""

    def __init__(self, port: int = names.HTTP_PORT) -> None:
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Prober":
        self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def look(
        self,
        leaders: Iterable[tuple[str, str]],
        routers: Iterable[tuple[str, str]],
        keys: Mapping[str, bytes],
    ) -> tuple[dict[str, EngineState], list[RouterView]]:
        """`states` of the leaders and `views` of the routers, all asked at once.

        `keys` are the control keys of the leaders, by pod. Routers want no signature.
        """
        states, views = await asyncio.gather(self.states(leaders, keys), self.views(routers))
        return states, views

    async def states(
        self, leaders: Iterable[tuple[str, str]], keys: Mapping[str, bytes]
    ) -> dict[str, EngineState]:
        """By pod, of those (pod, ip) that answer."""
        pods = list(leaders)
        answers = await asyncio.gather(
            *(self._get(ip, "/pds/state", keys.get(pod, b"")) for pod, ip in pods)
        )
        return {
            pod: engine_state(answer)
            for (pod, _), answer in zip(pods, answers, strict=True)
            if answer is not None
        }

    async def views(self, routers: Iterable[tuple[str, str]]) -> list[RouterView]:
        """Of those routers (pod, ip) that answer."""
        pods = list(routers)
        answers = await asyncio.gather(*(self._get(ip, "/pds/backends", b"") for _, ip in pods))
        return [
            router_view(pod, answer)
            for (pod, _), answer in zip(pods, answers, strict=True)
            if answer is not None
        ]

    async def drain(self, ip: str, seconds: int, key: bytes) -> str:
        """Ask a leader to take nothing new; what went wrong, or nothing."""
        path = "/pds/drain"
        try:
            async with self._open("POST", ip, path, key, {"deadline_seconds": seconds}) as answer:
                return "" if answer.status < 400 else f"HTTP {answer.status}"
        except TRANSIENT as error:
            return str(error) or type(error).__name__

    async def _get(self, ip: str, path: str, key: bytes) -> dict[str, Any] | None:
        try:
            async with self._open("GET", ip, path, key, None) as answer:
                told = await answer.json() if answer.status == 200 else None
                return told if isinstance(told, dict) else None
        except (*TRANSIENT, ValueError):
            return None

    def _open(
        self, method: str, ip: str, path: str, key: bytes, body: dict[str, Any] | None
    ) -> Any:
        if self._session is None:
            raise RuntimeError("the prober is used outside its context")
        host = f"[{ip}]" if ":" in ip else ip
        return self._session.request(
            method,
            f"http://{host}:{self._port}{path}",
            json=body,
            headers=signature(key, method, path, int(time.time()) + SIGNED_SECONDS),
        )


def signature(key: bytes, method: str, path: str, expires: int) -> dict[str, str]:
    """The headers by which engines know their operator: HMAC-SHA256 over method, path, expiry."""
    text = f"{method}\n{path}\n{expires}".encode()
    return {
        "x-pds-expiry": str(expires),
        "x-pds-signature": hmac.new(key, text, hashlib.sha256).hexdigest(),
    }
