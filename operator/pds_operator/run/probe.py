"""What pods say of themselves over HTTP: leaders' /pds/state and routers' /pds/backends.

Pods are not trusted with more than their answer: no redirect is followed (it would carry our
signature elsewhere), no answer is read beyond its bound, and what is malformed is no answer.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from pds_operator import names
from pds_operator.facts.answers import (
    BACKENDS_BYTES,
    STATE_BYTES,
    BadAnswer,
    engine_state,
    router_view,
)
from pds_operator.facts.observed import LeaderState, RouterView
from pds_operator.run.api import TRANSIENT

TIMEOUT = aiohttp.ClientTimeout(total=1.5)
SIGNED_SECONDS = 30
AT_ONCE = 64
"""Pods that are asked at the same time: each may hold us for its whole time, and fill its bound."""
NOW = "x-pds-now"
NOW_SIGNATURE = "x-pds-now-signature"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What came back, as far as it is wanted."""

    status: int
    body: bytes
    clock: float = 0.0
    """Seconds that the pod's clock is ahead of ours, where it did not take what ours says."""


class Prober:
    """Asks pods. Answers are facts of the moment: one that does not come is no answer."""

    def __init__(self, port: int = names.HTTP_PORT, clock: Callable[[], float] = time.time) -> None:
        self._port = port
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> "Prober":
        self._session = aiohttp.ClientSession(
            timeout=TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),  # AT_ONCE is the bound
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def look(
        self,
        leaders: Iterable[tuple[str, str]],
        routers: Iterable[tuple[str, str]],
        keys: Mapping[str, bytes],
    ) -> tuple[dict[str, LeaderState], list[RouterView]]:
        """`states` of the leaders and `views` of the routers, all asked at once.

        `keys` are the control keys of the leaders, by pod. Routers want no signature.
        """
        states, views = await asyncio.gather(self.states(leaders, keys), self.views(routers))
        return states, views

    async def states(
        self, leaders: Iterable[tuple[str, str]], keys: Mapping[str, bytes]
    ) -> dict[str, LeaderState]:
        """By pod, of those (pod, ip) that answer."""

        async def one(pod: str, ip: str) -> LeaderState:
            key = keys.get(pod, b"")
            answer = await self._ask("GET", ip, "/pds/state", key, most=STATE_BYTES)
            return engine_state(_good(answer), answer.clock)

        pods = list(leaders)
        answers = await asyncio.gather(*(_or_none(one(pod, ip)) for pod, ip in pods))
        known = zip(pods, answers, strict=True)
        return {pod: state for (pod, _), state in known if state is not None}

    async def views(self, routers: Iterable[tuple[str, str]]) -> list[RouterView]:
        """Of those routers (pod, ip) that answer."""

        async def one(pod: str, ip: str) -> RouterView:
            answer = await self._ask("GET", ip, "/pds/backends", b"", most=BACKENDS_BYTES)
            return router_view(pod, _good(answer))

        answers = await asyncio.gather(*(_or_none(one(pod, ip)) for pod, ip in routers))
        return [view for view in answers if view is not None]

    async def drain(self, ip: str, seconds: int, key: bytes) -> str:
        """Ask a leader to take nothing new; what went wrong, or nothing."""
        body = json.dumps({"deadline_seconds": seconds}).encode()
        try:
            answer = await self._ask("POST", ip, "/pds/drain", key, body, most=STATE_BYTES)
        except (*TRANSIENT, BadAnswer) as error:
            return str(error) or type(error).__name__
        return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"

    async def _ask(
        self, method: str, ip: str, path: str, key: bytes, body: bytes = b"", *, most: int
    ) -> PodAnswer:
        """One call; once more by the pod's own clock, where that is why it refuses the first.

        Without a key, b"", nothing is signed.

        Raises:
            TRANSIENT: the pod does not answer in time.
            BadAnswer: with more than `most` bytes.
        """
        async with self._room, asyncio.timeout(TIMEOUT.total):
            now = self._clock()
            sent = signature(key, method, path, int(now) + SIGNED_SECONDS) if key else {}
            answer, theirs = await self._exchange(method, ip, path, sent, body, most)
            if not key or answer.status != 403 or theirs is None or not by(key, sent, *theirs):
                return answer
            ahead = float(theirs[0]) - now
            sent = signature(key, method, path, int(theirs[0]) + SIGNED_SECONDS)
            answer, _ = await self._exchange(method, ip, path, sent, body, most)
            return PodAnswer(answer.status, answer.body, ahead)

    async def _exchange(
        self, method: str, ip: str, path: str, headers: dict[str, str], body: bytes, most: int
    ) -> tuple[PodAnswer, tuple[str, str] | None]:
        """(the answer, the pod's time and its signature where it sends them)."""
        if self._session is None:
            raise RuntimeError("the prober is used outside its context")
        host = f"[{ip}]" if ":" in ip else ip
        kind = {"content-type": "application/json"} if body else {}
        plain = {"accept-encoding": "identity", **kind}
        async with self._session.request(
            method,
            f"http://{host}:{self._port}{path}",
            data=body or None,
            headers={**headers, **plain},
            allow_redirects=False,
        ) as answer:
            read = await _read(answer.content, most)
            now, proof = answer.headers.get(NOW, ""), answer.headers.get(NOW_SIGNATURE, "")
            sent_time = now.isascii() and now.isdecimal() and len(now) <= 12
            theirs = (now, proof) if sent_time else None
            return PodAnswer(answer.status, read), theirs


async def _read(content: aiohttp.StreamReader, most: int) -> bytes:
    """All of a body. Raises BadAnswer above `most` bytes."""
    parts, size = [], 0
    async for part in content.iter_any():
        size += len(part)
        if size > most:
            raise BadAnswer(f"it has more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _good(answer: PodAnswer) -> bytes:
    if answer.status != 200:
        raise BadAnswer(f"HTTP {answer.status}")
    return answer.body


async def _or_none(asked: Awaitable[Found]) -> Found | None:
    """What one pod does never ends the look at the others."""
    try:
        return await asked
    except (*TRANSIENT, ValueError):
        return None


def signature(key: bytes, method: str, path: str, expires: int) -> dict[str, str]:
    """The headers by which engines know their operator: HMAC-SHA256 over method, path, expiry."""
    return {
        "x-pds-expiry": str(expires),
        "x-pds-signature": _mac(key, f"{method}\n{path}\n{expires}"),
    }


def by(key: bytes, sent: dict[str, str], now: str, proof: str) -> bool:
    """Whether `proof` shows that who answered a signed request `now` holds `key`."""
    expected = _mac(key, f"now\n{now}\n{sent['x-pds-signature']}")
    return hmac.compare_digest(expected.encode(), proof.encode(errors="replace"))


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
