"""Calls to pods: the engine must accept our signature, and answers become facts."""

import asyncio
import json
import time

import pytest
from aiohttp import web
from pds_engine import signing
from pds_engine.errors import Forbidden
from pds_engine.server import errors as server_errors
from pds_engine.server import headers
from pds_operator.facts.answers import BACKENDS_BYTES, STATE_BYTES
from pds_operator.facts.observed import LeaderState, RouterView
from pds_operator.run.probe import Prober, signature

KEY = bytes(range(32))


def test_the_engine_accepts_our_signature():
    headers = signature(KEY, "POST", "/pds/drain", expires=1100)
    signing.verify(KEY, "POST", "/pds/drain", headers, now=1000)


@pytest.fixture
async def pod():
    """A pod on loopback: (port, what was posted to it)."""
    posted: list = []

    async def state(request):
        return web.json_response(
            {
                "in_flight": 2,
                "transfers_in_flight": 1,
                "draining": True,
                "kv_fingerprint": "kv",
                "protocol": 2,
                "key_id": "0123456789",
                "kernels": {"manifest": "m", "compiles_after_ready": 4},
            }
        )

    async def backends(request):
        listed = [
            {"pod": "a", "routable": True, "requests": 9, "failures": 2},
            {"pod": "b", "routable": False},
        ]
        return web.json_response({"backends": listed})

    async def drain(request):
        signing.verify(KEY, "POST", "/pds/drain", dict(_lower(request.headers)), now=time.time())
        posted.append(await request.json())
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/pds/state", state)
    app.router.add_get("/pds/backends", backends)
    app.router.add_post("/pds/drain", drain)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], posted
    await runner.cleanup()


def _lower(headers):
    return ((name.lower(), value) for name, value in headers.items())


async def test_answers_become_facts(pod):
    port, posted = pod
    async with Prober(port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {
            "p": LeaderState(2, 1, True, "m", "kv", 4, 2, "0123456789")
        }
        assert await prober.views([("r", "127.0.0.1")]) == [
            RouterView("r", {"a": True, "b": False}, {"a": (9, 2), "b": (0, 0)})
        ]
        assert await prober.drain("127.0.0.1", 60, KEY) == ""
    assert posted == [{"deadline_seconds": 60}]


async def test_without_a_key_nothing_is_signed(pod, rude):
    """A leader that takes no signature of ours still says how it is to everybody."""
    rude.script = answered(b'{"in_flight": 3}')
    async with Prober(rude.port) as prober:
        states = await prober.states([("p", "127.0.0.1")], {})
    assert states == {"p": LeaderState(3)}
    assert b"x-pds-" not in rude.asked[0].lower()


async def test_who_does_not_answer_is_left_out():
    async with Prober(port=1) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
        assert await prober.views([("r", "127.0.0.1")]) == []
        assert await prober.drain("127.0.0.1", 60, KEY) != ""


class Rude:
    """A pod that answers each connection by `script`, and keeps what it was asked."""

    def __init__(self):
        self.script, self.asked, self.sent = b"", [], 0
        self.serving = {"open": 0, "most": 0}

    async def serve(self, reader, writer):
        self.serving["open"] += 1
        self.serving["most"] = max(self.serving.values())
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for part in [self.script] if isinstance(self.script, bytes) else self.script():
                writer.write(part)
                self.sent += len(part)
                await writer.drain()
            if self.script == b"":
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.serving["open"] -= 1
            writer.close()


@pytest.fixture
async def rude():
    rude = Rude()
    server = await asyncio.start_server(rude.serve, "127.0.0.1", 0)
    rude.port = server.sockets[0].getsockname()[1]
    yield rude
    server.close()


def answered(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close"]
    lines.append("content-type: application/json")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def endless():
    yield b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    while True:
        yield b" " * 65536


MALFORMED = {
    "a count in words": b'{"in_flight": "many"}',
    "a count below nothing": b'{"in_flight": -1}',
    "a count that is none": b'{"in_flight": true}',
    "a list": b"[]",
    "kernels of another kind": b'{"kernels": []}',
    "a manifest without end": json.dumps({"kernels": {"manifest": "m" * 5000}}).encode(),
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_state_is_no_answer(rude, body):
    rude.script = answered(body)
    async with Prober(rude.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
    assert rude.asked


@pytest.mark.parametrize(
    "body",
    [
        b'{"backends": {}}',
        b'{"backends": [{"routable": true}]}',
        b'{"backends": [{"pod": "a", "routable": "yes"}]}',
        b'{"backends": [{"pod": "a", "requests": 1e999}]}',
        b'{"backends": [{"pod": "a", "clock_offset": "late"}]}',
    ],
)
async def test_a_malformed_view_is_no_answer(rude, body):
    rude.script = answered(body)
    async with Prober(rude.port) as prober:
        assert await prober.views([("r", "127.0.0.1")]) == []


async def test_one_bad_pod_does_not_spoil_the_look_at_others(pod, rude):
    port, _ = pod
    bad = Prober(rude.port)
    rude.script = answered(MALFORMED["a count in words"])
    async with Prober(port) as prober, bad:
        exchange = prober._exchange

        async def routed(method, ip, *rest):
            other = bad._exchange if ip == "127.0.0.2" else exchange
            return await other(method, "127.0.0.1", *rest)

        prober._exchange = routed
        both = [("bad", "127.0.0.2"), ("good", "127.0.0.1")]
        states, views = await prober.look(both, both, {"good": KEY, "bad": KEY})
    assert list(states) == ["good"]
    assert [view.pod for view in views] == ["good"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect"])
async def test_no_redirect_is_followed(rude, pod, status):
    port, posted = pod
    rude.script = answered(b"", status, location=f"http://127.0.0.1:{port}/pds/drain")
    async with Prober(rude.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
        assert await prober.views([("r", "127.0.0.1")]) == []
        assert await prober.drain("127.0.0.1", 60, KEY) == f"HTTP {status[:3]}"
    assert posted == []


async def test_no_answer_is_read_beyond_its_bound(rude):
    rude.script = endless
    async with Prober(rude.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
        assert await prober.views([("r", "127.0.0.1")]) == []
        assert "more than" in await prober.drain("127.0.0.1", 60, KEY)
    # Beside it, what the sockets' buffers hold.
    assert rude.sent < 2 * STATE_BYTES + BACKENDS_BYTES + (24 << 20)


async def test_a_compressed_answer_is_not_unpacked(rude):
    rude.script = answered(b'{"in_flight": 1}', content_encoding="gzip")
    async with Prober(rude.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {"p": LeaderState(1)}
    assert b"identity" in rude.asked[0]


async def test_silent_pods_are_asked_some_at_a_time(rude, monkeypatch):
    monkeypatch.setattr("pds_operator.run.probe.AT_ONCE", 3)
    rude.script = endless  # busy until it is cut off
    async with Prober(rude.port) as prober:
        await prober.states([(f"p{n}", "127.0.0.1") for n in range(12)], {})
    assert len(rude.asked) == 12
    assert rude.serving["most"] <= 4  # one may still be closing


class SigningEngine:
    """Checks signatures as engines do, by a clock of its own."""

    def __init__(self, ahead, key=KEY):
        self.ahead, self.key, self.refused, self.drained = ahead, key, 0, 0

    async def start(self):
        app = web.Application()
        app.router.add_get("/pds/state", self.state)
        app.router.add_post("/pds/drain", self.drain)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]

    async def answer(self, request, state):
        given = dict(_lower(request.headers))
        try:
            headers.check(self.key, request.method, request.path, given, time.time() + self.ahead)
        except Forbidden as error:
            self.refused += 1
            status, body, more = server_errors.http_error(error)
            return web.Response(status=status, body=body, headers=more)
        return web.json_response(state)

    async def state(self, request):
        return await self.answer(request, {"in_flight": 3})

    async def drain(self, request):
        self.drained += 1
        return await self.answer(request, {})


@pytest.fixture
async def engines():
    started = []

    async def start(*args, **options):
        engine = SigningEngine(*args, **options)
        await engine.start()
        started.append(engine)
        return engine

    yield start
    for engine in started:
        await engine.runner.cleanup()


@pytest.mark.parametrize("ahead", [75, 3600, -3600])
async def test_an_engine_whose_clock_differs_is_asked_by_its_own(engines, ahead):
    engine = await engines(ahead)
    async with Prober(engine.port) as prober:
        states = await prober.states([("p", "127.0.0.1")], {"p": KEY})
        assert (states["p"].in_flight, engine.refused) == (3, 1)
        assert states["p"].clock == pytest.approx(ahead, abs=3)
        assert await prober.drain("127.0.0.1", 60, KEY) == ""


async def test_an_engine_whose_clock_agrees_says_nothing_of_it(engines):
    engine = await engines(0)
    async with Prober(engine.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {"p": LeaderState(3)}


async def test_an_engine_of_another_key_is_not_asked_twice(engines):
    engine = await engines(75, key=bytes(32))
    async with Prober(engine.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
        assert await prober.drain("127.0.0.1", 60, KEY) == "HTTP 403"
    assert (engine.refused, engine.drained) == (2, 1)


async def test_a_time_that_is_not_signed_by_our_key_is_not_believed(rude):
    rude.script = answered(
        b"{}", "403 Forbidden", x_pds_now="4000000000", x_pds_now_signature="0" * 64
    )
    async with Prober(rude.port) as prober:
        assert await prober.states([("p", "127.0.0.1")], {"p": KEY}) == {}
    assert len(rude.asked) == 1
