"""Calls to pods: the engine must accept our signature, and answers become facts."""

import time

import pytest
from aiohttp import web
from pds_engine import signing
from pds_operator.observed import EngineState, RouterView
from pds_operator.probe import Prober, signature

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
        assert await prober.states([("p", "127.0.0.1")], KEY) == {
            "p": EngineState(2, 1, True, "m", "kv", 4)
        }
        assert await prober.views([("r", "127.0.0.1")], KEY) == [
            RouterView("r", {"a": True, "b": False}, {"a": (9, 2), "b": (0, 0)})
        ]
        assert await prober.drain("127.0.0.1", 60, KEY) == ""
    assert posted == [{"deadline_seconds": 60}]


async def test_who_does_not_answer_is_left_out():
    async with Prober(port=1) as prober:
        assert await prober.states([("p", "127.0.0.1")], KEY) == {}
        assert await prober.views([("r", "127.0.0.1")], KEY) == []
        assert await prober.drain("127.0.0.1", 60, KEY) != ""
