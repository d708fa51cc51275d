"""Backends whose HTTP is odd, or whose connections end, through real sockets."""

import asyncio

import pytest

HELLO = b'data: {"t":1}\n\ndata: {"t":2}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff" * 50,
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"220 smtp.example.org ESMTP\r\n",
    ],
)
async def test_garbage_is_a_lost_backend(engine, router, garbage):
    async def script(seen, stream):
        stream.raw(garbage)
        await stream.gone.wait()

    bad, good = await engine("unified", script=script), await engine("unified")
    running = await router(bad, good)
    for _ in range(3):
        assert await running.stream() == HELLO
    assert bad.calls


async def test_a_hundred_continue_and_a_body_without_length_are_understood(engine, router):
    async def script(seen, stream):
        stream.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
        stream.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + HELLO)
        await asyncio.sleep(0.02)
        stream._writer.close()

    running = await router(await engine("unified", script=script))
    assert await running.stream() == HELLO


async def test_connections_are_kept_and_a_stale_one_is_replaced(engine, router):
    unified = await engine("unified")
    running = await router(unified, health={"interval": 30.0})
    for _ in range(5):
        assert await running.stream() == HELLO
    before = unified.connections
    assert before <= 2
    for writer in list(unified._writers):
        writer.transport.abort()
    assert await running.stream() == HELLO
    assert [b.failures for b in running.router.fleet] == [0]
